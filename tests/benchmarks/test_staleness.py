"""What is committed under benchmarks/results/ is what the tree counts, and what the pages say."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.accounting import figures
from benchmarks.limits import choices, tables
from benchmarks.report import documents
from benchmarks.rows import Row, read
from tests.marks import counted

ANY = documents.RESULTS / documents.ANY


def figures_of(rows: list[Row]) -> list[Row]:
    """Without versions; and without what ``torch.compile`` makes, which would take a minute."""
    return [replace(row, versions="") for row in rows if row.provider != "compile"]


@counted
def test_what_is_counted_is_what_the_tree_does():
    assert figures_of(read(ANY / "counted.csv")) == figures_of(figures.count(compiled=False)), "run `make counts`"


@counted
def test_what_is_modelled_is_made_of_what_the_tree_does():
    modelled = [row for case in tables.chosen() for row in tables.model(case, compiled=False)]
    read_from_code = [
        row for case in tables.chosen() if case.benchmark in tables.READ for mode in tables.MODES
        for row in tables.read(case, mode)[0]
    ]  # fmt: skip
    assert figures_of(read(ANY / "modelled.csv")) == figures_of([*modelled, *choices.rows(), *read_from_code]), (
        "run `make counts`"
    )


def test_pages_and_pictures_say_what_the_rows_say():
    assert documents.stale() == [], "run `make report`"
