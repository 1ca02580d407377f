"""Pictures and captions that a browser sent, made a data set."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from hnkernels.checkpoint.atomic import placing
from hnkernels.errors import InputError
from hnkernels.home.folder import Home
from hnkernels.home.names import check_name, child
from hnkernels.training.data.folder import CAPTION_SUFFIXES, read_folder
from hnkernels.training.data.pictures import PICTURE_SUFFIXES

_ACCEPTED = (*PICTURE_SUFFIXES, *CAPTION_SUFFIXES)


def take_pictures(home: Home, name: str, files: Iterable[str | Path]) -> Path:
    """Copies files into a new data set, or none of them.

    Args:
        home: where.
        name: of the data set.
        files: pictures, and texts of the same names.

    Raises:
        ValueError: the name is taken or not one, a file is of another type, or they make no data set.
    """
    target = child(home.data, name)
    if target.exists():
        raise InputError(f"there is a data set {name!r} already; give the new one another name")
    sources = [Path(file) for file in files]
    if not sources:
        raise InputError("there is no file to add; choose pictures first")
    names = [check_name(source.name) for source in sources]
    if twice := {one for one in names if names.count(one) > 1}:
        raise InputError(f"several files are named {min(twice)}; rename one of them")
    if strange := [one for one in names if not one.lower().endswith(_ACCEPTED)]:
        raise InputError(f"{strange[0]} is neither a picture nor a caption; accepted are {', '.join(_ACCEPTED)}")
    try:
        with placing(target) as folder:
            folder.mkdir(parents=True)
            for source in sources:
                shutil.copyfile(source, folder / source.name)
            read_folder(folder)
    except OSError as error:
        raise InputError(f"the pictures cannot be kept: {error.strerror or error}") from error
    return target
