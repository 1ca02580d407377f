"""Images with captions, from a folder or from memory."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from hnkernels.training.data.example import Example
from hnkernels.training.data.folder import FolderContents, read_folder


def read_image_folder(folder: str | Path) -> list[Example]:
    """The pictures of a folder and all folders below it, with their captions, in the order of their paths.

    A ``metadata.jsonl`` (a line per picture, ``{"file_name": …, "text": …}``, for a ``WeightHypernetwork`` also
    ``"condition"``, a style's name or ``{style: weight}``) or a ``metadata.csv`` with these columns says what its
    folder holds, in its order. Elsewhere every picture counts, and its caption is the content of the ``.txt`` or
    ``.caption`` beside it, or else its file name without extension and leading number. A picture counts once, whatever
    number its folder's name begins with. Text is UTF-8, or has a byte order mark.

    What is left out (hidden files, other types, pictures that a table does not name, captions without a picture) is
    counted and named in one warning.

    Raises:
        ValueError: there is no such folder, no picture in it, a caption or a line of a table cannot be used, or file
            names would become captions while captions lie there unread.
    """
    return examples_of(read_folder(Path(folder)), progress=False)


def examples_of(contents: FolderContents, progress: bool) -> list[Example]:
    """The examples; says once what there is, as a warning where something may not be as expected."""
    if contents.surprising:
        warnings.warn(contents.summary(), stacklevel=3)
    elif progress:
        tqdm.write(contents.summary(), file=sys.stderr)
    return [Example(*row) for row in contents.rows]


def as_examples(data: str | Path | Sequence[Example] | Sequence[tuple], progress: bool = False) -> list[Example]:
    """Examples from what a user may pass: a folder, or a sequence of ``Example`` or (image or path, caption), with or
    without a condition as the third.

    Args:
        data: what a user may pass.
        progress: whether to say on stderr what a folder holds where no warning does.

    Raises:
        ValueError: the folder cannot be used (see ``read_image_folder``), or an item is none of these.
    """
    if isinstance(data, (str, Path)):
        return examples_of(read_folder(Path(data)), progress)
    examples = []
    for number, item in enumerate(data):
        if not isinstance(item, Example):
            if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
                raise ValueError(f"data must hold (image, caption) pairs, found {type(item).__name__} at {number}")
            image, *rest = item
            item = Example(Path(image) if isinstance(image, str) else image, *rest)
        if not isinstance(item.caption, str):
            raise ValueError(f"data must hold captions as texts, found {item.caption!r} at {number}")
        examples.append(item)
    if not examples:
        raise ValueError("data is empty; give a folder with images, or (image, caption) pairs")
    return examples
