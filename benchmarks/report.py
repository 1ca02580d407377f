"""``python -m benchmarks.report [--check]``: writes pages, pictures and the tables of docs/ from the rows in
benchmarks/results/. With ``--check`` it writes nothing: it names every file whose figures the tree would not give now,
with the command that renews it, and exits with 1 if there is one.

What it checks are figures, not promises: a change of a tile makes many of them stale at once, and the command that
renews them is all that it takes. What is promised of them (launch budgets, never slower than eager PyTorch by the
model) is tested.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks import accounting, compiled, limits, plots, roofline, tables
from benchmarks.forms import sample
from benchmarks.rows import RESULTS, Row, read
from benchmarks.shapes import SD15
from hnkernels.triton.target import TARGETS
from hnkernels.triton.tiling import KINDS, PRODUCTS, PROVEN, candidates

ROOT = Path(__file__).parents[1]
ANY = "any"
"""The folder of what is the same on every machine."""

Table = Callable[[Sequence[Row]], list[str]]

TABLES: Mapping[str, tuple[str, Table]] = {
    "ceilings": ("Ceilings", tables.ceilings),
    "targets": ("Targets", tables.table),
    "speed": ("Speed", tables.speed),
    "scaling": ("Scaling", tables.scaling),
    "memory": ("Memory", tables.memory),
    "errors": ("Errors", tables.errors),
    "launches": ("Launches and bytes against the web UIs' way", accounting.launches),
    "account": ("Accounting", accounting.markdown),
    "summary": ("Limits in short", roofline.summary),
    "limits": ("Limits", roofline.times),
    "tiles": ("Tiles", limits.tile_table),
    "code": ("Compiled code", limits.code),
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


class Stale(NamedTuple):
    """A file whose figures are stale, by its path in the repository, and the command that renews them."""

    file: str
    command: str


def main(arguments: list[str]) -> int:
    """Writes or checks; 2 if nothing can be checked here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is stale")
    if parser.parse_args(arguments).check:
        return _check()
    for folder in folders():
        write(folder)
    for file in texts():
        file.write_text(filled(file.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def _check() -> int:
    others = other_versions()
    if others:
        print(f"{'; '.join(others)}: install the versions of constraints.txt to check them", file=sys.stderr)
        return 2
    count = 0
    for file, command in stale():
        print(f"{file} is stale: run `{command}`", flush=True)
        count += 1
    return int(count > 0)


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


def other_versions() -> list[str]:
    """What is installed of torch and triton that is not of the release which constraints.txt has: it would count, and
    compile, something else."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    found = []
    for name in ("torch", "triton"):
        wanted = next(line.split("==")[1] for line in pinned if line.startswith(f"{name}=="))
        here = version(name)
        if here.split("+")[0].split(".")[:2] != wanted.split("+")[0].split(".")[:2]:
            found.append(f"{name} {here} is installed, and the figures are those of {name} {wanted}")
    return found


def stale() -> Iterator[Stale]:
    """Every file whose figures are stale, those first that are soon known; takes two or three minutes."""
    for name in _stale_documents():
        yield Stale(name, "make report")
    for file, renewed in _COUNTED.items():
        if _comparable(read(file)) != _comparable(renewed()):
            yield Stale(_named(file), "make counts")
    for file in _stale_compiled():
        yield Stale(_named(file), "make compile-report")


_COUNTED: dict[Path, Callable[[], list[Row]]] = {
    accounting.FILE: lambda: accounting.count(compiled=False),
    limits.FILE: lambda: limits.all_rows(compiled=False),
}
"""File → the rows that it should have; without those of ``torch.compile``, which would take another minute."""


def _comparable(rows: list[Row]) -> list[Row]:
    return [replace(row, versions="") for row in rows if row.provider != "compile"]


def _stale_compiled() -> Iterator[Path]:
    """``proven.csv`` where it is not what ``compiled.csv`` comes to; and that where there are candidates for tiles that
    it does not know, a plain layer has launches that it lacks, or a sample does not compile to what it has."""
    with roofline.COMPILED.open(newline="", encoding="utf-8") as file:
        recorded = [compiled.Row.of(line) for line in csv.DictReader(file)]
    with PROVEN.open(newline="", encoding="utf-8") as file:
        chosen_from = list(csv.DictReader(file))
    # Of tiles with a fault in some forms others may be recorded, as forms of another kind: they are not lines there.
    lines = [{name: str(value) for name, value in line.items()} for line in compiled.accepted(recorded)[1]]
    if any(line not in lines for line in chosen_from):
        yield PROVEN
    known = {(row.target, kind, compiled.tiles_of(row.tiles)) for row in recorded for kind in compiled.kinds_of(row)}
    products = {(target, KINDS[kind][0], tiles) for target, kind, tiles in known}
    wanted = {(name, p, tiles) for name, target in TARGETS.items() for p in PRODUCTS for tiles in candidates(p, target)}
    figures: dict[tuple[str, ...], set[tuple[object, ...]]] = {}
    for row in recorded:
        figures.setdefault(_form(row), set()).add(_figures(row))
    unread = any(not r.found for gpu in roofline.GPUS.values() for r in limits.readings(SD15[0], "inference", gpu))
    # A few of the sample are not recorded: they are cut up as no launch of the library is.
    if (
        wanted - products
        or unread
        or any(_figures(row) not in figures.get(_form(row), {_figures(row)}) for row in compiled.compile_all(sample()))
    ):
        yield roofline.COMPILED


def _form(row: compiled.Row) -> tuple[str, ...]:
    return row.target, row.kernel, row.variant, row.tiles, row.dtype


def _figures(row: compiled.Row) -> tuple[object, ...]:
    return row.registers, row.stack, row.spills, row.shared_bytes, row.matrix, row.matrix_percent, row.load_bytes


def _named(file: Path) -> str:
    return str(file.relative_to(ROOT))


def _stale_documents() -> list[str]:
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
    """Where, with what, when, and how it is known."""
    first = rows[0]
    if folder.name == ANY:
        return f"Counted, compiled and modelled, not measured: the same on any machine; {first.versions}."
    return (
        f"Measured on {first.date}: {first.machine}; {first.versions}. Ratios of medians, providers interleaved in one "
        "process."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
