"""All runs of a home: listed, started, stopped, resumed, deleted."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hnkernels.errors import InputError
from hnkernels.home.folder import Home
from hnkernels.home.names import check_name, child, free_name
from hnkernels.home.recycling import Bin, Deleted
from hnkernels.home.runs.output import OUTPUT
from hnkernels.home.runs.process import Phase, RunProcess
from hnkernels.home.runs.request import RunRequest
from hnkernels.home.runs.run import ALIVE, QUEUED, Run
from hnkernels.training.persistence.run_folder import in_use
from hnkernels.training.progress.history import LOG
from hnkernels.training.progress.history import RUN as RECORD

_ORDER = ".order.lock"
_STARTS_WITHIN = 30.0  # seconds


class Runs:
    """The runs in the folder ``runs`` of a home, whoever started them.

    Args:
        home: the home; its folder may vanish and come back.
    """

    def __init__(self, home: Home):
        self.home = home
        self.path = home.runs
        self.bin = Bin(home.bin, home.path)

    def all(self) -> list[Run]:
        """All runs, those that live first, then the latest."""
        runs = [Run(folder) for folder in self._folders() if _is_run(folder)]
        return sorted(runs, key=lambda run: (run.state not in ALIVE, -_ticket(run), -run.changed))

    def __getitem__(self, name: object) -> Run:
        """A run by its name.

        Raises:
            ValueError: there is none.
        """
        folder = child(self.path, name)
        if not _is_run(folder):
            raise InputError(f"there is no run {name!r} in {self.path} any more; look at the list again")
        return Run(folder)

    def start(self, request: RunRequest, name: str | None = None) -> Run:
        """Puts a new run into the queue, as a process of its own.

        Args:
            request: what to train; its ticket is given here.
            name: of the run; the network's name if there is none. A number is appended if it is taken.

        Raises:
            ValueError: the name is not one, or the run cannot be started.
        """
        check_name(request.name if name is None else name)
        with self._ordered():
            folder = self.path / free_name(self.path, request.name if name is None else name)
            try:
                folder.mkdir()
                self._queue(folder, dataclasses.replace(request, resume=False))
            except (OSError, ValueError) as error:
                shutil.rmtree(folder, ignore_errors=True)
                raise _cannot("started", folder, error) from error
        return self._awaited(folder)

    def stop(self, name: object) -> Run:
        """Asks a run to save and stop; one that waits in the queue leaves it.

        Raises:
            ValueError: it has ended already, or was started elsewhere and is not this program's to stop.
        """
        run = self[name]
        process = run.process
        running = process.running() if process else None
        if process is None or running is None:
            if in_use(run.folder):
                raise InputError(f"the run {run.name} was started elsewhere; stop it there with Ctrl-C")
            raise InputError(f"the run {run.name} has ended already, there is nothing to stop")
        running.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # on a full disk it stops all the same
            dataclasses.replace(process, phase=Phase.STOPPING).write(run.folder)
        return Run(run.folder)

    def resume(self, name: object) -> Run:
        """Puts a run that ended early into the queue again: from its newest checkpoint, or from the beginning.

        Raises:
            ValueError: it runs, has finished, or was started elsewhere.
        """
        run = self[name]
        if run.request is None:
            raise InputError(
                f"the run {run.name} was not started here; resume it with: hnkernels train … --output-dir {run.folder} "
                "--resume"
            )
        if not run.resumable:
            raise InputError(f"the run {run.name} cannot be resumed: {run.sentence()}")
        with self._ordered():
            try:
                if not run.has_checkpoint:
                    (run.folder / LOG).unlink(missing_ok=True)  # of steps that no checkpoint has kept
                self._queue(run.folder, dataclasses.replace(run.request, resume=run.has_checkpoint))
            except (OSError, ValueError) as error:
                raise _cannot("resumed", run.folder, error) from error
        return self._awaited(run.folder)

    def delete(self, name: object) -> Deleted:
        """Moves a run with all its files to the bin.

        Raises:
            ValueError: it runs still, or cannot be moved.
        """
        run = self[name]
        if run.state in ALIVE:
            raise InputError(f"the run {run.name} is {run.state}; stop it first")
        return self.bin.put(run.name, [run.folder])

    def ahead_of(self, run: Run) -> int:
        """How many runs will have to end before a queued one begins."""
        others = [other for other in self.all() if other.name != run.name and other.state in ALIVE]
        return sum(other.state != QUEUED or _ticket(other) < _ticket(run) for other in others)

    def _folders(self) -> list[Path]:
        try:
            return [path for path in self.path.iterdir() if not path.name.startswith(".") and path.is_dir()]
        except OSError:
            return []

    @contextmanager
    def _ordered(self) -> Iterator[None]:
        """Inside, nobody else gives a ticket or a name."""
        self.home.make()
        descriptor = os.open(self.path / _ORDER, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _queue(self, folder: Path, request: RunRequest) -> None:
        """Writes the request with the next ticket, and starts the process."""
        tickets = [known.ticket for path in self._folders() if (known := RunRequest.read(path))]
        numbered = dataclasses.replace(request, ticket=max(tickets, default=0) + 1)
        numbered.command(folder)  # refuses what cannot be an argument
        RunProcess.path(folder).unlink(missing_ok=True)
        numbered.write(folder)
        command = [sys.executable, "-m", "hnkernels.home.runs.waiting", str(self.path), folder.name]
        with (folder / OUTPUT).open("ab") as output:
            # A session of its own: what ends the program that starts it does not reach it.
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, close_fds=True
            )

    def _awaited(self, folder: Path) -> Run:
        """The run, once its process has said which one it is."""
        end = time.monotonic() + _STARTS_WITHIN
        while RunProcess.read(folder) is None:
            if time.monotonic() > end:
                raise InputError(
                    f"the run {folder.name} did not start within {_STARTS_WITHIN:.0f} s; {folder / OUTPUT} says why"
                )
            time.sleep(0.02)
        return Run(folder)


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("request.json", RECORD, LOG))


def _ticket(run: Run) -> int:
    return run.request.ticket if run.request else 0


def _cannot(what: str, folder: Path, error: Exception) -> ValueError:
    reason = getattr(error, "strerror", None) or error
    return ValueError(f"the run {folder.name} cannot be {what}: {reason}")
