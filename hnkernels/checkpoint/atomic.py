"""Writing a file so that it is either whole and new, or untouched."""

from __future__ import annotations

import contextlib
import os
import secrets
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
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise Fault("is a folder", "name a file inside it")
    if not target.parent.is_dir():
        raise Fault("lies in a folder that does not exist", "create the folder first")
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    # mkstemp would make the file private to its owner; this mode is cut by the umask, as for any new file.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Network and FUSE file systems may refuse to sync a folder; the file itself is complete by now.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
