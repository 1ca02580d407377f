"""The results of finished runs: a file with a JSON object per line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from hnkernels.errors import InputError
from hnkernels.study.protocol import Cell, Protocol

_KEYS = {"cell", "seed", "settings", "parameters", "steps", "step_ms", "scores", "diverged"}


class Result(NamedTuple):
    """What became of a run.

    Attributes:
        parameters: of the network.
        steps: that were taken.
        step_ms: CPU time of one, median.
        scores: strength → score → value; see ``Bench.scores``. Empty if the run diverged.
        diverged: why, or ``None``.
    """

    parameters: int
    steps: int
    step_ms: float
    scores: dict[str, dict[str, float]]
    diverged: str | None = None


class Results:
    """The runs of a study that have been finished, and how good its judges are.

    A line is added when a run ends, so that one that is interrupted loses itself alone; a line that was not written to
    its end counts for nothing.

    Attributes:
        judges: their accuracies on pictures that they have not learned from; empty if they have not been trained yet.

    Args:
        path: of the file; there may be none yet.
        protocol: of the study.

    Raises:
        ValueError: the file is not one of results.
    """

    def __init__(self, path: Path, protocol: Protocol):
        self.path, self.protocol = path, protocol
        self.judges: dict[str, float] = {}
        self._found: dict[tuple[str, int], tuple[dict[str, Any], Result]] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self._unfinished = bool(text) and not text.endswith("\n")
        lines = text.split("\n")[:-1]
        for number, line in enumerate(lines, 1):
            self._take(line, number)

    def _take(self, line: str, number: int) -> None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and row.keys() == {"judges"}:
            self.judges = row["judges"]
            return
        if not isinstance(row, dict) or row.keys() != _KEYS:
            raise InputError(
                f"line {number} of {self.path} is not the result of a run; name another folder with --out, or remove "
                "the line"
            )
        key, settings = (row.pop("cell"), row.pop("seed")), row.pop("settings")
        self._found.setdefault(key, (settings, Result(**row)))

    def of(self, cell: Cell, seed: int) -> Result | None:
        """The result of a run, if it has been finished.

        Raises:
            ValueError: it was finished with other settings.
        """
        settings, result = self._found.get((cell.name, seed), (None, None))
        if settings is not None and settings != cell.settings(self.protocol):
            raise InputError(
                f"{self.path} holds the results of another study: {cell.name!r} was run there with other settings; "
                "name another folder with --out, or remove the file"
            )
        return result

    def add(self, cell: Cell, seed: int, result: Result) -> None:
        """Keeps the result of a run that has just ended."""
        settings = cell.settings(self.protocol)
        self._append({"cell": cell.name, "seed": seed, "settings": settings, **result._asdict()})
        self._found[cell.name, seed] = settings, result

    def add_judges(self, accuracies: dict[str, float]) -> None:
        """Keeps how good the judges are."""
        if accuracies != self.judges:
            self._append({"judges": accuracies})
            self.judges = accuracies

    def _append(self, row: dict[str, Any]) -> None:
        text = json.dumps(row, ensure_ascii=False) + "\n"
        if self._unfinished:
            whole = self.path.read_bytes().rpartition(b"\n")
            os.truncate(self.path, len(whole[0] + whole[1]))
            self._unfinished = False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
