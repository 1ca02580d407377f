"""Images with captions, from a folder or from memory."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from hnkernels.errors import InputError
from hnkernels.training.data.contents import FolderContents
from hnkernels.training.data.example import Example
from hnkernels.training.data.folder import read_folder
from hnkernels.wording import shown


def read_image_folder(folder: str | Path, mask_data: str | Path | None = None) -> list[Example]:
    """The pictures of a folder and all folders below it, with their captions, in the order of their paths.

    Tables say what their folder holds, in their order: ``metadata.jsonl`` (an object per line), ``metadata.csv`` and
    ``metadata.parquet`` (with pyarrow). They have the columns ``file_name`` and ``text`` (or ``caption``, ``prompt``),
    for a ``WeightHypernetwork`` also ``condition``, a style's name or ``{style: weight}``, and for a model that edits
    pictures ``source_file_name`` (or ``input_image_file_name``). The ``meta_cap.json`` and ``meta_lat.json`` of kohya's
    trainers are read too, with tags after the caption.

    Elsewhere every picture counts, and its caption is the content of the ``.txt`` or ``.caption`` beside it, or else
    the name of its folder if that begins with a number (``10_cat``), or else its file name without extension and
    leading number. Pictures in such a folder are used that many times per epoch. ``.tar`` files are shards, as
    webdataset has them, with ``.txt``, ``.caption`` or ``.json`` (``"caption"``) beside the pictures. Text is UTF-8, or
    has a byte order mark.

    What is left out (hidden files, other types, pictures that a table does not name, captions without a picture) is
    counted and named in one warning.

    Args:
        folder: the data.
        mask_data: a folder that holds a mask for every picture under the same path; the suffix may be another.

    Raises:
        ValueError: there is no such folder, no picture in it, a caption or a row of a table cannot be used, names would
            become captions while captions lie there unread, or a picture has no mask.
    """
    return examples_of(read_folder(folder, mask_data), progress=False)


def examples_of(contents: FolderContents, progress: bool) -> list[Example]:
    """The examples; says once what there is, as a warning where something may not be as expected."""
    if contents.surprising:
        warnings.warn(contents.summary(), stacklevel=3)
    elif progress:
        tqdm.write(contents.summary(), file=sys.stderr)
    return contents.rows


def as_examples(
    data: str | Path | Sequence[Example] | Sequence[tuple],
    progress: bool = False,
    mask_data: str | Path | None = None,
    without: str | Path | None = None,
) -> list[Example]:
    """Examples from what a user may pass: a folder, or a sequence of ``Example`` or (image or path, caption), with or
    without a condition as the third.

    Args:
        data: what a user may pass.
        progress: whether to say on stderr what a folder holds where no warning does.
        mask_data: a folder of masks for a folder of pictures; see ``read_image_folder``.
        without: a folder inside that of the pictures that does not belong to them.

    Raises:
        ValueError: the folder cannot be used (see ``read_image_folder``), or an item is none of these.
    """
    if isinstance(data, (str, Path)):
        return examples_of(read_folder(data, mask_data, without), progress)
    examples = []
    for number, item in enumerate(data):
        if not isinstance(item, Example):
            if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
                raise InputError(f"data must hold (image, caption) pairs, found {type(item).__name__} at {number}")
            image, *rest = item
            item = Example(Path(image) if isinstance(image, str) else image, *rest)
        if not isinstance(item.caption, str):
            raise InputError(f"data must hold captions as texts, found {item.caption!r} at {number}")
        if not isinstance(item.repeats, int) or isinstance(item.repeats, bool) or item.repeats < 1:
            raise InputError(f"data must hold repeats as integers >= 1, found {shown(item.repeats)} at {number}")
        if mask_data is not None and item.mask is None:
            raise InputError("mask_data is for a folder of pictures; give each Example its mask instead")
        examples.append(item)
    if not examples:
        raise InputError("data is empty; give a folder with images, or (image, caption) pairs")
    return examples
