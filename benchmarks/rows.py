"""The one schema of every figure: a row says what was done by whom, what it came to, and how that is known."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

KINDS = ("measured", "counted", "compiled", "modelled")
"""Timed on the machine; exact on any machine; read from compiled code; computed from counts and data sheets."""


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        kind: how it is known, one of ``KINDS``.
        benchmark: what was done: ``"projection"``, ``"lowrank"``, ``"unet"`` …
        mode: which part of it: ``"forward"``, ``"backward"``, ``"forward + backward"``, ``"inference"`` …
        shape: the name of the shape: ``"320 x 4096"``.
        dtype: ``"fp32"``, ``"fp16"``, ``"bf16"``.
        provider: who did it: ``"reference"``, ``"eager"``, ``"compile"``, ``"portable"``, ``"triton"``, ``"bound"`` …
        quantity: ``"time"``, ``"launches"``, ``"flops"``, ``"bytes"``, ``"saved"``, ``"peak"`` …
        value: in ``unit``; of timings the median.
        unit: ``"s"``, ``"B"``, ``"FLOP"``, ``"FLOP/s"``, ``"B/s"``, ``"1"``.
        low, high: quartiles of a timing; elsewhere the value.
        samples: over how many rounds.
        target: what a modelled or compiled figure is for: ``"A100"``; else empty.
        machine, versions, date: where, with what and when the command ran that printed it.
    """

    kind: str
    benchmark: str
    mode: str
    shape: str
    dtype: str
    provider: str
    quantity: str
    value: float
    unit: str
    low: float = float("nan")
    high: float = float("nan")
    samples: int = 1
    target: str = ""
    machine: str = "any"
    versions: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is unknown; accepted are {', '.join(KINDS)}")
        if self.low != self.low:  # nan
            object.__setattr__(self, "low", self.value)
            object.__setattr__(self, "high", self.value)


def write(rows: Iterable[Row], file: Path) -> None:
    """Writes a CSV of these rows, in their order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read(file: Path) -> list[Row]:
    """The rows of a CSV that ``write`` made.

    Raises:
        ValueError: it has other columns, with their names.
    """
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        expected = [f.name for f in fields(Row)]
        if reader.fieldnames != expected:
            raise ValueError(f"{file} has the columns {reader.fieldnames}; expected are {expected}: run it again")
        return [_parse(line) for line in reader]


def select(rows: Iterable[Row], **wanted: str) -> list[Row]:
    """The rows whose fields have these values."""
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def stamped(rows: Sequence[Row], machine: str, versions: str, date: str) -> list[Row]:
    """The rows with where, with what and when."""
    return [replace(row, machine=machine, versions=versions, date=date) for row in rows]


def _parse(line: dict[str, str]) -> Row:
    numbers = {name: float(line[name]) for name in ("value", "low", "high")}
    return Row(**{**line, **numbers, "samples": int(line["samples"])})  # type: ignore[arg-type]
