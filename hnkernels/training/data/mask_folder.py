"""A folder of masks beside a folder of training data."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path, PurePath

from hnkernels.errors import InputError
from hnkernels.training.data.contents import SPARE_MASKS, FolderContents, some
from hnkernels.training.data.pictures import PICTURE_SUFFIXES
from hnkernels.training.data.walk import walk


def check_mask_folder(masks: Path, data: Path) -> None:
    """Raises ``ValueError`` if there is no such folder of masks, or it is that of the data."""
    if not masks.is_dir():
        raise InputError(f"mask_data {masks} is not a folder; give a folder with a mask for every picture")
    if masks.resolve() == data.resolve():
        raise InputError(f"mask_data {masks} is the folder of the pictures; give the masks a folder of their own")


def give_masks(contents: FolderContents, folder: Path) -> None:
    """Gives every example of a folder its mask: the picture of the same path in ``folder``, of any picture's suffix.

    Raises:
        ValueError: pictures have no mask there.
    """
    masks = [path for path in walk(FolderContents(folder)) if path.suffix.lower() in PICTURE_SUFFIXES]
    by_name = {_key(path.relative_to(folder)): path for path in reversed(masks)}
    by_stem = {_key(path.relative_to(folder).with_suffix("")): path for path in reversed(masks)}
    missing = []
    for number, example in enumerate(contents.rows):
        name = PurePath(contents.name(example.image))
        mask = by_name.get(_key(name)) or by_stem.get(_key(name.with_suffix("")))
        if mask is None:
            missing.append(name.as_posix())
        contents.rows[number] = replace(example, mask=mask)
    if missing:
        raise InputError(
            f"{folder} holds no mask of {some(missing)} ({len(missing)} in all); a mask has the path of its picture, "
            f"such as {folder / PurePath(missing[0]).with_suffix('.png')}"
        )
    used = {example.mask for example in contents.rows}
    contents.leave_out(SPARE_MASKS, [path for path in masks if path not in used])


def _key(path: PurePath) -> str:
    """Equal for paths that differ in case or in how accents are composed."""
    return unicodedata.normalize("NFC", path.as_posix()).casefold()
