"""The numbers of a training run as CSV files: a row per step, per validation, per measurement of the network."""

from __future__ import annotations

import csv
import io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from hnkernels.checkpoint.atomic import replacing
from hnkernels.checkpoint.errors import naming

COLUMNS = (*("step", "epoch", "loss", "mean_loss", "learning_rate", "grad_norm", "iterations_per_second", "memory_gb"),)
"""Of ``log.csv``."""

VALIDATION_COLUMNS = (
    *("step", "loss", "standard_error", "base_loss", "difference", "difference_standard_error", "training_loss"),
)
"""Of ``validation.csv``; see ``Measured.row``."""

_END = 4096  # bytes


class CsvLog:
    """A CSV file of numbers; rows after the step that a run resumes from are dropped, and damaged ones.

    Args:
        path: the file; its folder is made.
        keep_until: the step that the run resumes from, 0 for a new run.
        columns: the first is ``"step"``.
        every_step: whether every step has a row, so that a warning says how many are missing.
    """

    def __init__(self, path: Path, keep_until: int, columns: Sequence[str] = COLUMNS, every_step: bool = True):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in rows_of(path, columns) if int(row[0]) <= keep_until] if keep_until else []
        if every_step and path.is_file() and len(kept) < keep_until:
            warnings.warn(f"{path} has {len(kept)} whole rows for the {keep_until} steps so far", stacklevel=2)
        text = io.StringIO(newline="")
        csv.writer(text).writerows([columns, *kept])
        with naming(path), replacing(path) as file:
            file.write(text.getvalue().encode())
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns, restval=math.nan, extrasaction="ignore")

    def write(self, row: Mapping[str, float]) -> None:
        """Appends a row; further keys are left out, and those that are missing are NaN."""
        self._writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})
        self._file.flush()

    def __enter__(self) -> CsvLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def rows_of(path: Path, columns: Sequence[str] = COLUMNS) -> list[list[str]]:
    """The whole rows of a log, in the order of their steps; none if there is no log."""
    rows: list[list[str]] = []
    for line in _lines(path):
        cells = line.split(",")
        if _is_row(cells, len(columns)) and (not rows or int(cells[0]) > int(rows[-1][0])):
            rows.append(cells)
    return rows


def table_of(path: Path, columns: Sequence[str] | None = None) -> dict[str, list[float]]:
    """The whole rows of a log, column by column; empty if there are none.

    Args:
        path: the file; there may be none.
        columns: what they are; ``None`` for what the file's first line says.
    """
    if columns is None:
        columns = next(iter(_lines(path)), "").split(",")
    rows = rows_of(path, columns)
    if not rows or columns[0] != "step":
        return {}
    return {name: [float(row[i]) for row in rows] for i, name in enumerate(columns)}


def last_rows(path: Path, columns: Sequence[str] = COLUMNS) -> list[dict[str, float]]:
    """The last whole rows of a log, by column: as many as there are in 4 kB at its end, which alone is read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _END))
            lines = file.read().decode("utf-8", "replace").rpartition("\n")[0].splitlines()
    except OSError:
        return []
    rows = [line.split(",") for line in lines]
    return [dict(zip(columns, map(float, row), strict=True)) for row in rows if _is_row(row, len(columns))]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    whole, _, _ = path.read_bytes().decode("utf-8", "replace").rpartition("\n")  # what follows is half a row
    return whole.splitlines()


def _is_row(cells: list[str], count: int) -> bool:
    try:
        step, numbers = int(cells[0]), [float(cell) for cell in cells]
    except ValueError:
        return False
    return step >= 0 and len(numbers) == count
