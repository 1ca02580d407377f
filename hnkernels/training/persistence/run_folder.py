"""The folder of a run: one run writes there at a time, and no run overwrites another."""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hnkernels.checkpoint.atomic import clear_leftovers
from hnkernels.errors import InputError
from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training.persistence.state import checkpoints_in
from hnkernels.training.progress.log import rows_of

LOCK = "run.lock"
"""The file that a run holds locked; it stays when the run is over."""

_NAME_AT_MOST = 255  # bytes
_ASKING = 0.05  # seconds: ``in_use`` holds the lock for an instant


class RunFolder:
    """Where a run's files lie.

    Args:
        path: ``output_dir``.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.log = self.path / "log.csv"
        self.start = self.path / "start.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other run writes here, and what a killed one left half done is tidied up.

        The lock is the operating system's: it ends with the process, however that ends.

        Raises:
            ValueError: another run is writing here, or the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self.path} cannot be written to: {reason}; name another output_dir") from error
        try:
            if not _lock(descriptor) and not _lock_later(descriptor):
                raise InputError(
                    f"another run is writing to {self.path}; wait until it has ended, or name another output_dir"
                )
            clear_leftovers(self.path)
            clear_leftovers(self.checkpoints)
            yield
        finally:
            os.close(descriptor)

    def files_for(self, net: Hypernetwork | WeightHypernetwork) -> tuple[Path, ...]:
        """The files of the finished network, named after it: letters, digits and ``-_.`` stay, the rest is ``_``.

        Raises:
            ValueError: its name makes no file name.
        """
        name = net.provenance.name
        if not isinstance(name, str) or not name.strip(". "):
            raise InputError(f"the network's name is {name!r}, which makes no file name; give it another")
        stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        suffixes = (".safetensors",) if isinstance(net, WeightHypernetwork) else (".safetensors", ".pt")
        files = tuple(self.path / f"{stem}{suffix}" for suffix in suffixes)
        if self.start in files:
            raise InputError(
                f"the network's name {name!r} is that of {self.start.name}, in which a run keeps what it began with; "
                "give it another"
            )
        if any(len(os.fsencode(file.name)) > _NAME_AT_MOST for file in files):
            raise InputError(
                f"the network's name makes the file name {files[0].name[:40]}…, which is longer than {_NAME_AT_MOST} "
                "bytes; shorten the name"
            )
        return files

    def best_of(self, net: Hypernetwork | WeightHypernetwork) -> Path:
        """The file of the network that did best on the pictures held out."""
        file = self.files_for(net)[0]
        return file.with_name(f"{file.stem}-best{file.suffix}")

    def check_unused(self, net: Hypernetwork | WeightHypernetwork) -> None:
        """Refuses what a new run of ``net`` would overwrite.

        Raises:
            ValueError: there are checkpoints, a log with rows or finished networks of that name.
        """
        if checkpoints_in(self.checkpoints):
            raise InputError(
                f"{self.path} holds a run already; continue it with resume=True (--resume), or name another output_dir"
            )
        if rows_of(self.log):
            raise InputError(
                f"{self.path} holds the log of another run, which ended before its first checkpoint; name another "
                f"output_dir, or remove {self.log}"
            )
        files = (*self.files_for(net), self.best_of(net))
        if there := [file.name for file in files if file.exists()]:
            raise InputError(
                f"{self.path} holds {' and '.join(there)}, which the run would overwrite; name another output_dir or "
                "give the network another name"
            )

    def check_resumable(self) -> None:
        """Raises ``ValueError`` if there are no checkpoints."""
        if not checkpoints_in(self.checkpoints):
            first = f"remove {self.log} and " if rows_of(self.log) else ""
            raise InputError(
                f"there is no checkpoint to resume in {self.checkpoints}; {first}start a run without resume "
                "(--resume), or name the output_dir of one that was interrupted"
            )


def _lock_later(descriptor: int) -> bool:
    time.sleep(_ASKING)
    return _lock(descriptor)


def in_use(path: Path) -> bool:
    """Whether a run is writing to a folder now. Changes nothing there."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        """Locks an open file until it is closed; ``False`` if another process has."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            warnings.warn(
                f"this file system has no locks ({error.strerror}); see to it that no other run writes here",
                stacklevel=4,
            )
        return True
