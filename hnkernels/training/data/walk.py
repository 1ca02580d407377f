"""The files below a folder of training data."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from hnkernels.errors import InputError
from hnkernels.training.data.contents import AGAIN, HIDDEN, NOT_FILES, RUN, SYSTEM, FolderContents
from hnkernels.training.data.pictures import PICTURE_SUFFIXES

_SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"}


def walk(contents: FolderContents, without: Iterable[Path] = ()) -> list[Path]:
    """All files below the folder that may be data, in the order of their paths; each folder once, whatever links to it.

    Args:
        contents: of the folder; what is passed over is left out there.
        without: folders that are not gone into.

    Raises:
        ValueError: a folder cannot be read.
    """
    root, passed = Path(os.path.realpath(contents.folder)), {os.path.realpath(folder) for folder in without}
    files: list[Path] = []
    starts, seen = [contents.folder], set[str]()
    for start in starts:  # grows: linked folders come after those that lie here
        for place, folders, names in os.walk(start, onerror=_refuse):
            real = os.path.realpath(place)
            if real in passed:
                folders.clear()
                continue
            if real in seen or root.parent.is_relative_to(real):
                contents.leave_out(AGAIN, [place])
                folders.clear()
                continue
            seen.add(real)
            below, inside = set(folders), list[Path]()
            for path in _visible(contents, place, folders, names):
                if path.name in below:
                    inside.append(path)
                elif path.is_file():
                    files.append(path)
                else:
                    contents.leave_out(NOT_FILES, [path])
            starts += [path for path in inside if path.is_symlink()]
            folders[:] = [path.name for path in inside if not path.is_symlink()]
    return sorted(files, key=lambda path: path.parts)


def is_the_systems(name: str) -> bool:
    """Whether a file or folder of this name is one that systems leave everywhere."""
    return name.startswith("._") or name.lower() in _SYSTEM_NAMES


def _visible(contents: FolderContents, place: str, folders: list[str], names: list[str]) -> list[Path]:
    """What lies in a folder but for hidden files, the system's, and those of a training run that wrote there."""
    run = {"log.csv", "checkpoints", "previews"} if "log.csv" in names and "checkpoints" in folders else set()
    visible = []
    for path in [Path(place, name) for name in sorted([*folders, *names])]:
        if path.name in run:
            contents.leave_out(RUN, [path])
        elif is_the_systems(path.name):
            contents.leave_out(SYSTEM, [path])
        elif path.name.startswith("."):
            picture = path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
            contents.leave_out(HIDDEN if picture else SYSTEM, [path])
        else:
            visible.append(path)
    return visible


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read the folder {error.filename}: {error}") from error
