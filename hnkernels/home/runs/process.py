"""Which process a run is: its id and when it started, so that another process with that id is not taken for it."""

from __future__ import annotations

import enum
import json
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from hnkernels.checkpoint.atomic import replacing

_FILE = "process.json"


class Phase(enum.Enum):
    """How far a process has come."""

    WAITING = "waiting"  # for its turn
    TURN = "turn"  # it trains, or prepares to
    STOPPING = "stopping"  # it was asked to stop


_SAME = 0.5  # seconds: how far two readings of one start may differ, where they depend on the wall clock


@dataclass(frozen=True)
class RunProcess:
    """The process of a run, as its folder names it.

    Args:
        pid: its id.
        started: when it started, in seconds since 1970, as the system says.
        phase: how far it has come.
    """

    pid: int
    started: float
    phase: Phase = Phase.WAITING

    @classmethod
    def current(cls, phase: Phase) -> RunProcess:
        """The process that asks."""
        return cls(os.getpid(), psutil.Process().create_time(), phase)

    def write(self, folder: Path) -> None:
        """Writes it into the run's folder.

        Raises:
            OSError: it cannot be written.
        """
        with replacing(folder / _FILE) as file:
            file.write(json.dumps({"pid": self.pid, "started": self.started, "phase": self.phase.value}).encode())

    @classmethod
    def read(cls, folder: Path) -> RunProcess | None:
        """The process that a folder names; ``None`` if it names none."""
        try:
            content = json.loads((folder / _FILE).read_bytes())
            return cls(int(content["pid"]), float(content["started"]), Phase(content["phase"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return None

    @staticmethod
    def path(folder: Path) -> Path:
        """The file in a run's folder that names its process."""
        return folder / _FILE

    def running(self) -> psutil.Process | None:
        """The process, if it runs still."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < _SAME
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.Error, ValueError, OverflowError):
            return None

    def memory(self) -> int:
        """Bytes of memory that it holds, with the processes that it started; 0 if it has ended."""
        process, total = self.running(), 0
        try:
            for one in [process, *process.children(recursive=True)] if process else []:
                total += one.memory_info().rss
        except psutil.Error:
            return total
        return total
