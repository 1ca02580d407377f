"""Which committed figures are stale: what the tree would count, model, compile or show now is not what they say.

These are figures, not promises: a change of a tile makes many of them stale at once, and the command that renews them
is all that it takes. What is promised of them (launch budgets, never slower than eager PyTorch by the model) is tested.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks import accounting, compiled, limits, readings, roofline
from benchmarks.forms import sample
from benchmarks.report import documents
from benchmarks.rows import Row, read
from benchmarks.shapes import SD15
from hnkernels.triton.target import TARGETS
from hnkernels.triton.tiling import KINDS, PRODUCTS, PROVEN, candidates


class Stale(NamedTuple):
    """A file whose figures are stale, by its path in the repository, and the command that renews them."""

    file: str
    command: str


def other_versions() -> list[str]:
    """What is installed of torch and triton that is not of the release which constraints.txt has: it would count, and
    compile, something else."""
    pinned = (documents.ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    found = []
    for name in ("torch", "triton"):
        wanted = next(line.split("==")[1] for line in pinned if line.startswith(f"{name}=="))
        here = version(name)
        if here.split("+")[0].split(".")[:2] != wanted.split("+")[0].split(".")[:2]:
            found.append(f"{name} {here} is installed, and the figures are those of {name} {wanted}")
    return found


def stale() -> Iterator[Stale]:
    """Every file whose figures are stale, those first that are soon known; takes two or three minutes."""
    for name in documents.stale():
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
    # Of tiles with a fault in some forms the others may be recorded, as forms of another kind: they are no lines there.
    lines = [{name: str(value) for name, value in line.items()} for line in compiled.accepted(recorded)[1]]
    if any(line not in lines for line in chosen_from):
        yield PROVEN
    known = {(row.target, kind, compiled.tiles_of(row.tiles)) for row in recorded for kind in compiled.kinds_of(row)}
    products = {(target, KINDS[kind][0], tiles) for target, kind, tiles in known}
    wanted = {(name, p, tiles) for name, target in TARGETS.items() for p in PRODUCTS for tiles in candidates(p, target)}
    figures: dict[tuple[str, ...], set[tuple[object, ...]]] = {}
    for row in recorded:
        figures.setdefault(_form(row), set()).add(_figures(row))
    unread = any(not r.found for gpu in roofline.GPUS.values() for r in readings.readings(SD15[0], "inference", gpu))
    # A few of the sample are not recorded: they are cut up as no launch of the library is.
    if wanted - products or unread or any(_figures(r) not in figures.get(_form(r), {_figures(r)}) for r in _sampled()):
        yield roofline.COMPILED


def _sampled() -> list[compiled.Row]:
    return compiled.compile_all(sample())


def _form(row: compiled.Row) -> tuple[str, ...]:
    return row.target, row.kernel, row.variant, row.tiles, row.dtype


def _figures(row: compiled.Row) -> tuple[object, ...]:
    return row.registers, row.stack, row.spills, row.shared_bytes, row.matrix, row.matrix_percent, row.load_bytes


def _named(file: Path) -> str:
    return str(file.relative_to(documents.ROOT))
