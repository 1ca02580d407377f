"""The numbers of a training run, one row per step."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path

from hnkernels.checkpoint.atomic import replacing
from hnkernels.checkpoint.errors import naming

COLUMNS = ("step", "epoch", "loss", "mean_loss", "learning_rate", "grad_norm", "iterations_per_second")


class CsvLog:
    """A CSV file with ``COLUMNS``; rows after the step that a run resumes from are dropped, and damaged ones.

    Args:
        path: the file; its folder is made.
        keep_until: the step that the run resumes from, 0 for a new run.
    """

    def __init__(self, path: Path, keep_until: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in rows_of(path) if int(row[0]) <= keep_until]
        if path.is_file() and len(kept) < keep_until:
            warnings.warn(f"{path} has {len(kept)} whole rows for the {keep_until} steps so far", stacklevel=2)
        text = io.StringIO(newline="")
        csv.writer(text).writerows([COLUMNS, *kept])
        with naming(path), replacing(path) as file:
            file.write(text.getvalue().encode())
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS, extrasaction="ignore")

    def write(self, row: dict[str, float]) -> None:
        """Appends a row; further keys are left out."""
        self._writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})
        self._file.flush()

    def __enter__(self) -> CsvLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def rows_of(path: Path) -> list[list[str]]:
    """The whole rows of a log, in the order of their steps; none if there is no log."""
    if not path.is_file():
        return []
    whole, _, _ = path.read_bytes().decode("utf-8", "replace").rpartition("\n")  # what follows is half a row
    rows: list[list[str]] = []
    for line in whole.splitlines():
        cells = line.split(",")
        if _is_row(cells) and (not rows or int(cells[0]) > int(rows[-1][0])):
            rows.append(cells)
    return rows


def _is_row(cells: list[str]) -> bool:
    try:
        step, numbers = int(cells[0]), [float(cell) for cell in cells]
    except ValueError:
        return False
    return step > 0 and len(numbers) == len(COLUMNS)
