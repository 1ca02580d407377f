"""Folders named as kohya's trainers want them: ``10_cat`` holds pictures of a cat, each used 10 times per epoch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from hnkernels.errors import InputError

_NUMBERED = re.compile(r"([0-9]+)_(.*)", re.DOTALL)
_REPEATS_AT_MOST = 1000  # beyond it, the number is a date or an index


class NumberedFolder(NamedTuple):
    """What the name of a folder says of the pictures in it."""

    repeats: int
    caption: str


def numbered_folder(image: Path, root: Path) -> NumberedFolder | None:
    """What the nearest numbered folder above a picture says, of those below ``root``; ``None`` if there is none.

    Raises:
        ValueError: its number is too large to be a number of repeats.
    """
    for folder in image.relative_to(root).parents:
        if match := _NUMBERED.fullmatch(folder.name):
            repeats = int(match[1])
            if repeats > _REPEATS_AT_MOST:
                raise InputError(
                    f"the folder {root / folder} says that its pictures are used {match[1]} times per epoch; accepted "
                    f"are numbers up to {_REPEATS_AT_MOST}, so rename it if this is not meant"
                )
            return NumberedFolder(repeats, match[2])
    return None
