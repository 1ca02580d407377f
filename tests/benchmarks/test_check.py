"""The check of committed figures names what is stale and the command that renews it. Whether any is, it says itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.report import Stale, main
from benchmarks.rows import Row, read, write

ROW = Row("counted", "projection, relu", "inference", "320 x 4096", "fp16", "triton", "launches", 2.0, "1")


@pytest.fixture
def figures(monkeypatch, tmp_path) -> Path:
    """One file of counted rows, which are what the tree counts; everything else is as it should be."""
    file = tmp_path / "counted.csv"
    write([ROW], file)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "_stale_documents", list)
    monkeypatch.setattr(report, "other_versions", list)
    monkeypatch.setattr(report, "_COUNTED", {file: lambda: [ROW]})
    monkeypatch.setattr(report, "_stale_compiled", list)
    return file


def test_nothing_is_stale_where_the_tree_gives_what_is_committed(figures, capsys):
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_a_figure_that_the_tree_would_not_give_is_named_with_the_command_that_renews_it(figures, capsys):
    write([replace(ROW, value=3.0)], figures)
    assert main(["--check"]) == 1
    assert capsys.readouterr().out == "counted.csv is stale: run `make counts`\n"
    assert read(figures)[0].value == 3.0, "it writes nothing"


def test_versions_and_what_torch_compile_makes_are_not_compared(figures):
    write([replace(ROW, versions="torch 1"), replace(ROW, provider="compile", value=9.0)], figures)
    assert list(report.stale()) == []


def test_pages_and_what_was_compiled_have_commands_of_their_own(figures, monkeypatch):
    monkeypatch.setattr(report, "_stale_documents", lambda: ["docs/page.md"])
    monkeypatch.setattr(report, "_stale_compiled", lambda: [figures.with_name("proven.csv")])
    assert list(report.stale()) == [Stale("docs/page.md", "make report"), Stale("proven.csv", "make compile-report")]


def test_with_other_versions_nothing_is_said_to_be_stale(figures, monkeypatch, capsys):
    monkeypatch.setattr(report, "other_versions", lambda: ["torch 3.0 is installed"])
    assert main(["--check"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith("install the versions of constraints.txt to check them\n")
