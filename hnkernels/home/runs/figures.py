"""What a run has measured so far, ready to be drawn: read as it grows, thinned."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hnkernels.home.runs.curves import Curve, LogReader, thinned
from hnkernels.training.progress.history import HEALTH, LOG, VALIDATION
from hnkernels.training.progress.log import VALIDATION_COLUMNS, table_of

_NOTHING = np.empty(0)


class RunFigures:
    """The curves of one run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._log = LogReader(folder / LOG)

    def of_steps(self, column: str) -> Curve:
        """A column of the log: ``"loss"``, ``"mean_loss"``, ``"learning_rate"`` …"""
        return self._log.curve(column)

    def of_validations(self, column: str) -> Curve:
        """A column of the validations: ``"loss"``, ``"base_loss"`` …"""
        return _curve(table_of(self.folder / VALIDATION, VALIDATION_COLUMNS), column)

    def changes(self) -> dict[str, Curve]:
        """How far each part of the network is from its start, by its name."""
        table = table_of(self.folder / HEALTH)
        return {name.removesuffix(".change"): _curve(table, name) for name in table if name.endswith(".change")}

    def version(self) -> tuple[int, ...]:
        """Changes whenever the numbers do; costs as good as nothing."""
        return tuple(_size(self.folder / name) for name in (LOG, VALIDATION, HEALTH))


def _curve(table: dict[str, list[float]], column: str) -> Curve:
    return thinned(table["step"], table[column]) if table else thinned(_NOTHING, _NOTHING)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
