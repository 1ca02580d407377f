"""What calls cost the host: the counted part, and where there is none. Nothing here is timed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.host_calls import HostProvider
from benchmarks.rows import Line, table

ROOT = Path(__file__).parents[2]


def test_calls_are_counted_exactly():
    def run():
        for _ in range(3):
            len([])

    assert HostProvider(run).calls() == 1 + 3


def test_a_line_says_whether_its_target_is_met():
    found = [Line("a", "b", 0.4, "x", 0.4), Line("a", "b", 16, "calls more per layer", 15), Line("a", "b", 2, "x")]
    assert table(found)[2:] == [
        "| a | b | 0.400 x | ≤ 0.4 | yes |",
        "| a | b | 16.0 calls more per layer | ≤ 15 | no |",
        "| a | b | 2.000 x | none | – |",
    ]


def test_the_counted_lines_come_out(monkeypatch, capsys):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["host", "--counted"]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if " calls" in line and line.startswith("|")]
    assert len(lines) == 9
    assert all(float(line.split("|")[3].split()[0]) > 0 for line in lines)


def test_the_interpreter_is_refused(monkeypatch, capsys):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["host"]) == 2
    assert capsys.readouterr().err == (
        "under TRITON_INTERPRET=1 kernels run on CPU tensors already; unset it to pretend a device\n"
    )


def test_without_triton_it_is_refused():
    script = "import sys; sys.modules['triton'] = None; from benchmarks.__main__ import main; sys.exit(main(['host']))"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert ended.stderr == "pretend_device needs Triton, which is not installed: pip install triton\n"
    assert ended.returncode == 2
