"""Networks renamed, copied, noted on, deleted: with all their files, or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hnkernels.checkpoint.atomic import replacing
from hnkernels.checkpoint.errors import naming
from hnkernels.errors import InputError
from hnkernels.home.library.entry import NOTES, Entry
from hnkernels.home.library.library import Library
from hnkernels.home.library.notes import write_notes
from hnkernels.home.names import check_name
from hnkernels.home.recycling import Deleted


def rename(library: Library, key: str, name: str) -> str:
    """Gives a network's files another name.

    That is the name that A1111 lists and that prompts use. The name inside the files stays, and with it their bytes,
    their hash and the optimizer's state that goes by the hash; A1111 uses it when it trains the network on.

    Returns:
        The new key.

    Raises:
        ValueError: it belongs to a run, the name is none or is taken, or a file cannot be renamed. Then all files have
            their old names.
    """
    entry = _own(library, key, "renamed")
    folder = library.home.networks
    with library.claiming(folder, name) as target:
        moves = [(path, target.with_name(name + _suffix(entry, path))) for path in (*entry.files, *entry.beside)]
        done: list[tuple[Path, Path]] = []
        try:
            for old, new in moves:
                os.rename(old, new)
                done.append((old, new))
        except OSError as error:
            for old, new in reversed(done):
                os.rename(new, old)
            raise InputError(f"{entry.name} cannot be renamed: {error.strerror or error}; it is as it was") from error
    return f"networks/{name}"


def copy(library: Library, key: str, name: str = "") -> str:
    """Copies the files of a network, of a run or not, under a name of its own among the networks.

    Args:
        library: it.
        key: the network.
        name: the new name; empty for the old one, with a number if it is taken.

    Returns:
        The new key.

    Raises:
        ValueError: it cannot be read, or the name is none or is taken.
        CheckpointError: a file cannot be written. Then none is.
    """
    entry = library.entry(key)
    entry.file()
    folder = library.home.networks
    with library.claiming(folder, name or entry.name, numbered=not name) as target:
        made: list[Path] = []
        try:
            for path in entry.files:
                new = target.with_name(target.name + _suffix(entry, path))
                with naming(new), path.open("rb") as source, replacing(new) as file:
                    shutil.copyfileobj(source, file, 2**20)
                made.append(new)
        except BaseException:
            for path in made:
                path.unlink(missing_ok=True)
            raise
    return f"networks/{target.name}"


def annotate(library: Library, key: str, text: str) -> None:
    """Puts notes beside a network, in the place of those that are there.

    Raises:
        ValueError: it belongs to a run, or the notes are too long.
        CheckpointError: they cannot be written.
    """
    entry = _own(library, key, "noted on")
    write_notes(library.home.networks / f"{entry.name}{NOTES}", text)


def delete(library: Library, key: str) -> Deleted:
    """Moves all files of a network to the bin, from where ``library.bin.restore`` brings them back.

    Raises:
        ValueError: it belongs to a run, or a file cannot be moved. Then all files are where they were.
    """
    entry = _own(library, key, "deleted")
    files = [*entry.files, *entry.beside]
    try:
        for path in files:
            check_name(path.name)
    except ValueError as error:
        raise InputError(f"{error}; rename it before it is deleted, so that it can come back") from error
    return library.bin.put(entry.name, files)


def _own(library: Library, key: str, what: str) -> Entry:
    entry = library.entry(key)
    if not entry.own:
        raise InputError(f"{entry.name} belongs to the run {entry.run}; copy it, and the copy can be {what}")
    return entry


def _suffix(entry: Entry, path: Path) -> str:
    return path.name.removeprefix(entry.name)
