"""Files from elsewhere, taken in among the networks: read as those of a stranger, then put in place whole."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from pathlib import Path

from hnkernels.checkpoint import CheckpointError
from hnkernels.checkpoint.files import EXTENSIONS
from hnkernels.errors import InputError
from hnkernels.home.library.facts import read_facts
from hnkernels.home.library.library import Library
from hnkernels.home.names import check_name

LARGEST = 2 * 2**30
"""Bytes of a file that is taken in: 2 GiB."""


def take_in(library: Library, source: Path, name: str = "") -> str:
    """Copies a hypernetwork file among the networks, if it is one.

    Args:
        library: it.
        source: the file; it stays.
        name: what it is called, with its extension; empty for the name of ``source``. A number is put after a name
            that is taken.

    Returns:
        The key of the network.

    Raises:
        ValueError: it is not an ordinary file, is too large, has another extension, or is not called by a name.
        CheckpointError: it is damaged, hostile or not a hypernetwork, or cannot be written.
    """
    name = check_name(name or source.name)
    suffix = Path(name).suffix
    if suffix.lower() not in EXTENSIONS:
        raise InputError(f"{name} is not taken in: a hypernetwork file ends in {' or '.join(EXTENSIONS)}")
    folder = library.home.networks
    # What begins like this is tidied up by ``clear_leftovers`` after a process that was killed.
    staging = folder / f".incoming.{secrets.token_hex(6)}.tmp"
    try:
        with library.claiming(folder, name.removesuffix(suffix), numbered=True) as target:
            staging.mkdir()
            copied = staging / name
            _copy(source, copied, name)
            facts = read_facts(copied)
            if facts.problem:
                raise CheckpointError(facts.problem)
            os.replace(copied, target.with_name(target.name + suffix.lower()))
    except OSError as error:
        raise InputError(f"{name} is not taken in: {error.strerror or error}; check disk and folder") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return f"networks/{target.name}"


def _copy(source: Path, target: Path, name: str) -> None:
    """Copies at most ``LARGEST`` bytes of an ordinary file; links are not followed."""
    descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or source.is_symlink():
            raise InputError(f"{name} is not taken in: it is not an ordinary file")
        if info.st_size > LARGEST:
            raise InputError(f"{name} is not taken in: it has {info.st_size} bytes, and {LARGEST} are accepted")
        with target.open("xb") as copy:
            left = LARGEST
            while left and (block := file.read(min(2**20, left))):
                copy.write(block)
                left -= len(block)
            copy.flush()
            os.fsync(copy.fileno())
