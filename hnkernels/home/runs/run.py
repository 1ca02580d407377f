"""One run, as its folder and its process say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

from hnkernels.home.runs.output import OUTPUT, last_lines
from hnkernels.home.runs.process import Phase, RunProcess
from hnkernels.home.runs.request import RunRequest
from hnkernels.training.persistence.run_folder import in_use
from hnkernels.training.persistence.state import checkpoints_in
from hnkernels.training.progress.history import LOG, RUN, read_run
from hnkernels.training.progress.log import last_rows

QUEUED, PREPARING, TRAINING, STOPPING = "queued", "preparing", "training", "stopping"
FINISHED, STOPPED, DIED = "finished", "stopped", "died"
ALIVE = (QUEUED, PREPARING, TRAINING, STOPPING)
"""States of a run whose process runs."""


@dataclass(frozen=True)
class Run:
    """A run at one moment.

    Args:
        folder: its folder.

    Attributes:
        name: its folder's name.
    """

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def request(self) -> RunRequest | None:
        """What it was asked to do; ``None`` for a run from the command line."""
        return RunRequest.read(self.folder)

    @cached_property
    def process(self) -> RunProcess | None:
        """Its latest process; ``None`` for a run from the command line."""
        return RunProcess.read(self.folder)

    @cached_property
    def state(self) -> str:
        """What it does: ``QUEUED``, ``PREPARING`` (model and pictures are read and encoded), ``TRAINING``,
        ``STOPPING``, or what became of it: ``FINISHED``, ``STOPPED`` (somebody stopped it), ``DIED``."""
        process = self.process
        if process is not None and process.running():
            if process.phase is Phase.WAITING:
                return QUEUED
            if process.phase is Phase.STOPPING:
                return STOPPING
            return TRAINING if _later(self.folder / LOG, process.path(self.folder)) else PREPARING
        if in_use(self.folder):
            return TRAINING if (self.folder / LOG).is_file() else PREPARING
        stopped = read_run(self.folder).get("stopped")
        if stopped in ("finished", "schedule"):
            return FINISHED
        asked = process is not None and process.phase is Phase.STOPPING
        return STOPPED if asked or stopped == "interrupted" else DIED

    @cached_property
    def end(self) -> int | None:
        """The step at which it is to end; ``None`` before training has begun."""
        end = read_run(self.folder).get("end")
        return end if type(end) is int else None

    @cached_property
    def _rows(self) -> list[dict[str, float]]:
        return last_rows(self.folder / LOG)

    @property
    def latest(self) -> dict[str, float]:
        """The last row of its log, by column; empty before the first step."""
        return self._rows[-1] if self._rows else {}

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.latest.get("step", 0))

    @property
    def pace(self) -> float | None:
        """Steps per second, the median of the last ones; ``None`` before the first."""
        paces = [row["iterations_per_second"] for row in self._rows if row["iterations_per_second"] > 0]
        return median(paces) if paces else None

    @property
    def seconds_left(self) -> float | None:
        """How long it will take still, at its present pace; ``None`` if that is not known."""
        if self.state != TRAINING or self.end is None or self.pace is None:
            return None
        return (self.end - self.step) / self.pace

    @property
    def resumable(self) -> bool:
        """Whether it ended early and can go on."""
        return self.state in (STOPPED, DIED) and self.request is not None

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return bool(checkpoints_in(self.folder / "checkpoints"))

    @property
    def changed(self) -> float:
        """When anything happened to it last, in seconds since 1970."""
        times = [_modified(self.folder / name) for name in (LOG, RUN, OUTPUT, "request.json")]
        return max(times)

    @property
    def previews(self) -> list[Path]:
        """Pictures that it has drawn on its way, in the order of their steps."""
        return sorted((self.folder / "previews").glob("*.png"))

    def last_lines(self, count: int = 8) -> list[str]:
        """The last lines that its process has written; none if it wrote nothing."""
        return last_lines(self.folder / OUTPUT, count)

    def sentence(self) -> str:
        """The state in a sentence."""
        of = f"step {self.step} of {self.end}" if self.end else f"step {self.step}"
        if self.state == QUEUED:
            return "Waits until it is its turn."
        if self.state == PREPARING:
            return "Reads the model, and reads and encodes the pictures."
        if self.state == TRAINING:
            return f"Trains: {of}."
        if self.state == STOPPING:
            return f"Saves and stops, at {of}."
        if self.state == FINISHED:
            return f"Finished, at {of}."
        how = "resume continues from there" if self.has_checkpoint else "resume begins again"
        if self.state == STOPPED:
            return f"Stopped, at {of}; {how}."
        lines = self.last_lines(1)
        said = f" Its last words: {lines[0]}" if lines else " It said nothing."
        return f"Died, at {of}; {how}.{said}"


def _later(file: Path, than: Path) -> bool:
    """Whether a file is there and was written to after another."""
    return _modified(file) > _modified(than)


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
