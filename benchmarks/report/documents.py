"""Puts tables and pictures where they are read: pages in the folders, and docs/. Says what of it is stale."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import limits
from benchmarks.report import claims, plots, tables
from benchmarks.rows import Row, read

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ANY = "any"
"""The folder of what is the same on every machine."""

Table = Callable[[Sequence[Row]], list[str]]

TABLES: Mapping[str, tuple[str, Table]] = {
    "ceilings": ("Ceilings", tables.ceilings),
    "targets": ("Targets", claims.table),
    "speed": ("Speed", tables.speed),
    "scaling": ("Scaling", tables.scaling),
    "memory": ("Memory", tables.memory),
    "errors": ("Errors", tables.errors),
    "launches": ("Launches and bytes against the web UIs' way", tables.launches),
    "account": ("Accounting", tables.account),
    "summary": ("Limits in short", tables.summary),
    "limits": ("Limits", tables.predicted_times),
    "tiles": ("Tiles", limits.tile_table),
    "code": ("Compiled code", tables.code),
}
"""Name → heading and table."""

MACHINE_PAGES = {"results.md": ("ceilings", "targets", "speed", "scaling", "memory", "errors")}
ANY_PAGES = {"counted.md": ("launches", "account"), "limits.md": ("summary", "tiles", "limits"), "code.md": ("code",)}
PICTURES = {
    "speed": "speed.svg", "memory": "memory.svg", "ceilings": "roofline.svg", "scaling": "cost-*.svg",
    "launches": "memory.svg", "summary": "speed.svg", "limits": "roofline.svg",
}  # fmt: skip
"""Table → the pictures that belong to it."""

_MARK = re.compile(r"(<!-- table: ([\w-]+)/([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def folders() -> list[Path]:
    """Those of the machines, and of what is the same on all."""
    return sorted({file.parent for file in RESULTS.glob("*/*.csv")})


def rows_of(folder: Path) -> list[Row]:
    """Every row in a folder."""
    return [row for file in sorted(folder.glob("*.csv")) for row in read(file)]


def pages(folder: Path, rows: Sequence[Row]) -> dict[str, str]:
    """The Markdown pages of a folder by file name: tables, and the pictures that there are."""
    made = {}
    for file, names in (ANY_PAGES if folder.name == ANY else MACHINE_PAGES).items():
        lines = [f"# {'On any machine' if folder.name == ANY else folder.name}", "", _heading(folder, rows)]
        for name in names:
            heading, table = TABLES[name]
            body = table(rows)
            if body:
                pictures = sorted(folder.glob(PICTURES[name])) if name in PICTURES else []
                lines += ["", f"## {heading}", "", *body]
                lines += [line for picture in pictures for line in ("", f"![{heading}]({picture.name})")]
        made[file] = "\n".join(lines) + "\n"
    return made


def write(folder: Path) -> None:
    """Writes the pictures and the pages of a folder."""
    rows = rows_of(folder)
    plots.draw(rows, folder)
    for file, text in pages(folder, rows).items():
        (folder / file).write_text(text, encoding="utf-8")


def texts() -> list[Path]:
    """The pages of docs/ that have tables in them."""
    return sorted(file for file in (ROOT / "docs").rglob("*.md") if _MARK.search(file.read_text(encoding="utf-8")))


def filled(text: str) -> str:
    """A page with every table between its marks, ``<!-- table: folder/name -->``, as the rows are now.

    Raises:
        ValueError: a mark names a folder or a table that there is not.
    """

    def table(mark: re.Match[str]) -> str:
        begin, folder, name, end = mark.groups()
        if name not in TABLES or RESULTS / folder not in folders():
            raise ValueError(f"a page asks for the table {folder}/{name}, and there is none")
        rows = rows_of(RESULTS / folder)
        return "\n".join([begin.rstrip(), _heading(RESULTS / folder, rows), "", *TABLES[name][1](rows), end])

    return _MARK.sub(table, text)


def stale() -> list[str]:
    """What is not as the rows would have it: pages, pictures, tables in docs/. Empty where all is up to date."""
    found = []
    for folder in folders():
        rows = rows_of(folder)
        for name, text in pages(folder, rows).items():
            file = folder / name
            if not file.exists() or file.read_text(encoding="utf-8") != text:
                found.append(str(file.relative_to(ROOT)))
        found += [str((folder / name).relative_to(ROOT)) for name in plots.stale(rows, folder)]
    for file in texts():
        text = file.read_text(encoding="utf-8")
        if filled(text) != text:
            found.append(str(file.relative_to(ROOT)))
    return found


def _heading(folder: Path, rows: Sequence[Row]) -> str:
    return tables.counted_heading(rows) if folder.name == ANY else tables.measured_heading(rows)
