"""The process of a run: waits until it is its turn, then becomes ``hnkernels train``.

    python -m hnkernels.home.runs.waiting RUNS NAME

Every run is a process from the start, so the queue needs nobody who works it off: what started it may end. The turn is
a lock of the operating system, which ends with the process that has it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

from hnkernels.errors import InputError
from hnkernels.home.runs.process import Phase, RunProcess
from hnkernels.home.runs.request import RunRequest

TURN = ".turn.lock"
"""The lock's file, in the folder of all runs."""

_POLL = 0.5  # seconds


def wait_and_train(runs: Path, name: str) -> None:
    """Does not return.

    Args:
        runs: the folder of all runs.
        name: of the run's folder in it.

    Raises:
        ValueError: the folder has no request.
        OSError: the turn or the command cannot be had.
    """
    folder = runs / name
    # Whoever started this may ignore Ctrl-C, as shells do for what they start in the background.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    RunProcess.current(Phase.WAITING).write(folder)
    request = RunRequest.read(folder)
    if request is None:
        raise InputError(f"{folder} does not say what to train; start the run again")
    lock = os.open(runs / TURN, os.O_RDWR | os.O_CREAT, 0o666)
    while _earlier_waits(runs, request.ticket) or not _lock(lock):
        time.sleep(_POLL)
    RunProcess.current(Phase.TURN).write(folder)
    os.set_inheritable(lock, True)
    command = request.command(folder)
    os.execv(command[0], command)


def _earlier_waits(runs: Path, ticket: int) -> bool:
    """Whether a run with a lower ticket waits still."""
    for folder in runs.iterdir():
        process = RunProcess.read(folder)
        if process is None or process.phase is not Phase.WAITING or not process.running():
            continue
        other = RunRequest.read(folder)
        if other is not None and other.ticket < ticket:
            return True
    return False


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    wait_and_train(Path(sys.argv[1]), sys.argv[2])
