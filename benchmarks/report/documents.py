"""Puts tables and pictures where they are read: a page per machine, and the README. Says what of it is stale."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.report import claims, counted, measured, plots
from benchmarks.rows import Row, read

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ANY = "any"
"""The folder of what is the same on every machine."""

Table = Callable[[Sequence[Row]], list[str]]

MEASURED: Mapping[str, tuple[str, Table]] = {
    "ceilings": ("Ceilings", measured.ceilings),
    "targets": ("Targets", lambda rows: claims.table(list(rows))),
    "speed": ("Speed", measured.speed),
    "scaling": ("Scaling", measured.scaling),
    "memory": ("Memory", measured.memory),
    "errors": ("Errors", measured.errors),
}
COUNTED: Mapping[str, tuple[str, Table]] = {
    "launches": ("Launches and bytes", counted.launches),
    "account": ("Accounting", counted.account),
    "limits": ("Limits", counted.limits),
    "code": ("Compiled code", counted.code),
}

_MARK = re.compile(r"(<!-- table: ([\w-]+)/([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def folders() -> list[Path]:
    """Those of the machines, and of what is the same on all."""
    return sorted({file.parent for file in RESULTS.glob("*/*.csv") if file.name != "compiled.csv"})


def rows_of(folder: Path) -> list[Row]:
    """Every row in a folder."""
    return [row for file in sorted(folder.glob("*.csv")) if file.name != "compiled.csv" for row in read(file)]


def page(folder: Path, rows: Sequence[Row]) -> str:
    """The Markdown page of a folder: all its tables and pictures."""
    kinds = COUNTED if folder.name == ANY else MEASURED
    title = "Counted and modelled: the same on any machine" if folder.name == ANY else folder.name
    lines = [f"# {title}", "", *_heading(folder, rows)]
    for name, (heading, table) in kinds.items():
        body = table(rows)
        if body:
            lines += ["", f"## {heading}", "", *body]
            lines += [line for file in _pictures(folder, name) for line in ("", f"![{heading}]({file.name})")]
    return "\n".join(lines) + "\n"


def write(folder: Path) -> list[Path]:
    """Writes the page and the pictures of a folder; returns their files."""
    rows = rows_of(folder)
    files = plots.draw(rows, folder)
    file = folder / "results.md"
    file.write_text(page(folder, rows), encoding="utf-8")
    return [*files, file]


def readme(text: str) -> str:
    """The README with every table between its marks, ``<!-- table: folder/name -->``, as the rows are now.

    Raises:
        ValueError: a mark names a folder or a table that there is not.
    """

    def filled(mark: re.Match[str]) -> str:
        begin, folder, name, end = mark.groups()
        kinds = COUNTED if folder == ANY else MEASURED
        if name not in kinds or RESULTS / folder not in folders():
            raise ValueError(f"the README asks for the table {folder}/{name}, and there is none")
        rows = rows_of(RESULTS / folder)
        return "\n".join([begin.rstrip(), *_heading(RESULTS / folder, rows), "", *kinds[name][1](rows), end])

    return _MARK.sub(filled, text)


def stale() -> list[str]:
    """What is not as the rows would have it: pages, pictures, tables of the README. Empty where all is up to date."""
    found = []
    for folder in folders():
        rows = rows_of(folder)
        file = folder / "results.md"
        if not file.exists() or file.read_text(encoding="utf-8") != page(folder, rows):
            found.append(str(file.relative_to(ROOT)))
        found += [str((folder / name).relative_to(ROOT)) for name in plots.stale(rows, folder)]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [*found, "README.md"] if readme(text) != text else found


def _heading(folder: Path, rows: Sequence[Row]) -> list[str]:
    return [counted.heading(rows) if folder.name == ANY else measured.heading(rows)]


def _pictures(folder: Path, table: str) -> list[Path]:
    """Those that belong to a table."""
    wanted = {"scaling": "cost-*.svg", "ceilings": "roofline.svg", "limits": "roofline.svg"}
    return sorted(folder.glob(wanted.get(table, f"{table}.svg")))
