"""Writing a file or a folder so that it is either whole and new, or untouched."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hnkernels.checkpoint.errors import Fault

_NAME_AT_MOST = 40  # characters of a name that a temporary name repeats: 255 bytes are what a file system takes
_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{12}\.(tmp|old)", re.DOTALL)


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
    is killed between them leaves both whole beside ``path``, and ``clear_leftovers`` brings the old one back.

    Raises:
        Fault: ``path`` lies in no folder.
        OSError: something cannot be written or renamed.
    """
    with _renaming(path) as temporary:
        yield temporary
        for file in temporary.rglob("*") if temporary.is_dir() else [temporary]:
            _sync(file)


def clear_leftovers(folder: Path) -> None:
    """Tidies up after a process that was killed in ``replacing`` or ``placing``; only for a folder of one writer.

    Temporary files and folders are removed. What had been set aside for its successor, which did not come, is back
    under its name.
    """
    for path in list(folder.glob(".*")):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        target = path.with_name(match[1])
        if match[2] == "tmp" or target.exists():
            _remove(path)
        elif len(match[1]) < _NAME_AT_MOST:
            os.rename(path, target)


@contextmanager
def _renaming(path: Path) -> Iterator[Path]:
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise Fault("lies in a folder that does not exist", "create the folder first")
    temporary = target.with_name(f".{target.name[:_NAME_AT_MOST]}.{secrets.token_hex(6)}.tmp")
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
    try:
        os.rename(old, aside)
        os.rename(new, old)
    except BaseException:
        if aside.exists() and not old.exists():
            os.rename(aside, old)
        raise
    finally:
        if old.exists():
            _remove(aside)


def _remove(path: Path) -> None:
    """Removes a file or folder as far as that is possible; there may be none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _sync(path: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
