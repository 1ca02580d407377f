"""The numbers of a run, thinned for drawing: of so many steps the mean and the extremes, so that no peak is lost."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnkernels.training.progress.log import COLUMNS, table_of

POINTS = 400
"""The most points of a curve: about one per two pixels of a page."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One column of a log.

    Attributes:
        steps: the last step of each point.
        mean, low, high: over the point's steps.
    """

    steps: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers


def thinned(steps: Sequence[float] | Numbers, values: Sequence[float] | Numbers, points: int = POINTS) -> Curve:
    """A curve of at most ``points`` points; steps that have no number count for nothing."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) <= points:
        return Curve(x, y, y, y)
    starts = np.arange(points) * len(x) // points
    counts = np.diff([*starts, len(x)])
    mean = np.add.reduceat(y, starts) / counts
    ends = np.append(starts[1:], len(x)) - 1
    return Curve(x[ends], mean, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts))


@dataclass
class LogReader:
    """Reads ``log.csv`` as it grows: each row once.

    Args:
        path: the file; there may be none yet.
    """

    path: Path
    _inode: int = -1
    _offset: int = 0
    _parts: list[Numbers] = field(default_factory=list)

    def curve(self, column: str, points: int = POINTS) -> Curve:
        """One column, thinned."""
        rows = self.rows()
        return thinned(rows[:, 0], rows[:, COLUMNS.index(column)], points)

    def rows(self) -> Numbers:
        """All rows so far, [rows, columns]."""
        self._read_new()
        if len(self._parts) != 1:
            self._parts = [np.concatenate(self._parts) if self._parts else np.empty((0, len(COLUMNS)))]
        return self._parts[0]

    def _read_new(self) -> None:
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                # Resuming puts another file in its place, and the rows after the checkpoint are gone.
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset, self._parts = status.st_ino, 0, []
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            self._inode, self._offset, self._parts = -1, 0, []
            return
        if not newline:
            return
        self._parts.append(_parsed(whole + newline, first=self._offset == 0, path=self.path))
        self._offset += len(whole) + 1


def _parsed(text: bytes, first: bool, path: Path) -> Numbers:
    """Rows of a log, [rows, columns]."""
    import pandas  # reads a million rows in half a second

    header = ",".join(COLUMNS).encode()
    body = text.partition(b"\n")[2] if first and text.startswith(header) else text
    if not body:
        return np.empty((0, len(COLUMNS)))
    try:
        frame = pandas.read_csv(io.BytesIO(body), header=None, names=COLUMNS, dtype=np.float64)
        return frame.to_numpy()
    except (ValueError, pandas.errors.ParserError):  # a damaged row
        table = table_of(path, COLUMNS)
        return np.array([table[name] for name in COLUMNS]).T if table else np.empty((0, len(COLUMNS)))
