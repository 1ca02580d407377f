"""The numbers of a training run, one row per step."""

from __future__ import annotations

import csv
from pathlib import Path

COLUMNS = ("step", "epoch", "loss", "mean_loss", "learning_rate", "grad_norm", "iterations_per_second")


class CsvLog:
    """A CSV file with ``COLUMNS``; rows after the step that a run resumes from are dropped.

    Args:
        path: the file; its folder is made.
        keep_until: the step that the run resumes from, 0 for a new run.
    """

    def __init__(self, path: Path, keep_until: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if keep_until and path.is_file():
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= keep_until]
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, extrasaction="ignore")
        self._writer.writeheader()
        self._writer.writerows(kept)

    def write(self, row: dict[str, float]) -> None:
        """Appends a row; further keys are left out."""
        self._writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})
        self._file.flush()

    def __enter__(self) -> CsvLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
