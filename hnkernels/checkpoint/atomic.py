"""Writing a file or a folder so that it is either whole and new, or untouched."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hnkernels.checkpoint.errors import Fault


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the body ends without an exception.

    The bytes go to a temporary file in the same folder, reach the disk, and are then renamed; if anything fails, the
    temporary file is removed and ``path`` stays as it was. A symbolic link is followed. Permissions are those of any
    new file under the process's umask.

    Raises:
        Fault: ``path`` is a folder, or lies in no folder.
        OSError: the file cannot be written.
    """
    if path.is_dir():
        raise Fault("is a folder", "name a file inside it")
    with _renaming(path) as temporary:
        # mkstemp would make the file private to its owner; this mode is cut by the umask, as for any new file.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def placing(path: Path) -> Iterator[Path]:
    """A free name beside ``path``; the file or folder that the body makes there takes the place of ``path``.

    As ``replacing``, for what is written by name. A folder takes the place of a folder in two renames; a process that
    is killed between them leaves both whole beside ``path``.

    Raises:
        Fault: ``path`` lies in no folder.
        OSError: something cannot be written or renamed.
    """
    with _renaming(path) as temporary:
        yield temporary
        for file in temporary.rglob("*") if temporary.is_dir() else [temporary]:
            _sync(file)


@contextmanager
def _renaming(path: Path) -> Iterator[Path]:
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise Fault("lies in a folder that does not exist", "create the folder first")
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        if temporary.is_dir() and target.is_dir():
            _exchange(temporary, target)
        else:
            os.replace(temporary, target)
    except BaseException:
        _remove(temporary)
        raise
    with contextlib.suppress(OSError):  # network and FUSE file systems may refuse; the file itself is complete by now
        _sync(target.parent)


def _exchange(new: Path, old: Path) -> None:
    aside = new.with_suffix(".old")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except BaseException:
        os.rename(aside, old)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _sync(path: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
