"""The pictures and captions of a data folder: looked at, one page at a time, and captions edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from hnkernels.checkpoint.atomic import replacing
from hnkernels.errors import InputError
from hnkernels.training.data.buckets import Buckets
from hnkernels.training.data.contents import FILE_NAMES, FOLDER_NAMES
from hnkernels.training.data.example import Example
from hnkernels.training.data.folder import CAPTION_SUFFIXES, read_folder
from hnkernels.training.data.pictures import opened

THUMBNAIL = 160
"""Longest side in pixels of a picture in a list."""

_LONGEST_CAPTION = 10_000  # characters
_SHADE = (220, 38, 38, 110)  # of what is cropped


@dataclass(frozen=True)
class Item:
    """A picture in a list.

    Attributes:
        index: its place in the data set.
        thumbnail: the picture, small.
        caption: its caption.
    """

    index: int
    thumbnail: Image.Image
    caption: str


class Dataset:
    """A data folder, as it was when it was read.

    Args:
        folder: the folder.

    Raises:
        ValueError: it cannot be used for training; the message says why.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._contents = read_folder(folder)

    def __len__(self) -> int:
        return len(self._contents.rows)

    def summary(self) -> str:
        """How many pictures, captions from where, what is left out and why."""
        return self._contents.summary()

    def items(self, first: int, count: int) -> list[Item]:
        """Some of the pictures; in the place of one that cannot be read stands a grey one, and why."""
        found = []
        for index, example in enumerate(self._contents.rows[first : first + count], start=first):
            try:
                found.append(Item(index, _small(example, THUMBNAIL), example.caption))
            except ValueError as error:
                found.append(Item(index, Image.new("RGB", (THUMBNAIL, THUMBNAIL), "grey"), f"cannot be read: {error}"))
        return found

    def caption(self, index: int) -> str:
        """The caption of a picture.

        Raises:
            ValueError: there is no such picture.
        """
        return self._example(index).caption

    def cropped(self, index: int, side: int, buckets: Buckets | None, longest: int = 480) -> tuple[Image.Image, str]:
        """A picture with what training crops shaded, and that in words.

        Args:
            index: the picture's.
            side: in pixels, of the square that pictures are cropped to without buckets.
            buckets: sizes of other shapes, of which the best is chosen.
            longest: side in pixels of what is shown.

        Raises:
            ValueError: there is no such picture, or it cannot be read.
        """
        example = self._example(index)
        width, height = example.picture_size()
        wide, high = (side, side) if buckets is None else buckets.assign(width, height)
        kept_width, kept_height = min(width, height * wide / high), min(height, width * high / wide)
        picture = _small(example, longest).convert("RGBA")
        scale_x, scale_y = picture.width / width, picture.height / height
        box = (width - kept_width) / 2 * scale_x, (height - kept_height) / 2 * scale_y
        shade = Image.new("RGBA", picture.size, _SHADE)
        ImageDraw.Draw(shade).rectangle(
            (box[0], box[1], picture.width - box[0] - 1, picture.height - box[1] - 1), (0, 0, 0, 0)
        )
        lost = 1 - kept_width * kept_height / (width * height)
        said = f"{width} × {height} pixels, trained at {wide} × {high}; {lost:.0%} of it is cropped."
        return Image.alpha_composite(picture, shade).convert("RGB"), said

    def write_caption(self, index: int, caption: str) -> None:
        """Changes a picture's caption, in the text file beside it.

        Where pictures are called by their names so far, each gets a text file: with some alone the folder would not be
        read.

        Raises:
            ValueError: it is not in a text file and cannot be, or cannot be written.
        """
        example = self._example(index)
        if len(caption) > _LONGEST_CAPTION:
            raise InputError(f"the caption has {len(caption)} characters; {_LONGEST_CAPTION} are accepted")
        by_name = set(self._contents.captions) <= {FILE_NAMES, FOLDER_NAMES}
        try:
            if (file := _caption_file(example)) is not None:
                _write(file, caption)
            elif by_name and all(isinstance(row.image, Path) for row in self._contents.rows):
                for other in self._contents.rows:
                    assert isinstance(other.image, Path)
                    _write(other.image.with_suffix(CAPTION_SUFFIXES[0]), caption if other is example else other.caption)
            else:
                raise InputError(
                    f"captions of {self.folder} come from {', '.join(self._contents.captions)}; change this one there"
                )
        except OSError as error:
            raise InputError(f"the caption cannot be written: {error.strerror or error}") from error
        self._contents = read_folder(self.folder)

    def _example(self, index: int) -> Example:
        if not isinstance(index, int) or not 0 <= index < len(self):
            raise InputError(f"there is no picture {index!r} any more; choose one from the list")
        return self._contents.rows[index]


def _small(example: Example, longest: int) -> Image.Image:
    with opened(example.image) as image:
        image.draft("RGB", (longest, longest))  # a JPEG is decoded no larger than needed
        small = ImageOps.exif_transpose(image).convert("RGBA")
        small.thumbnail((longest, longest))
        white = Image.new("RGBA", small.size, "white")
        return Image.alpha_composite(white, small).convert("RGB")


def _caption_file(example: Example) -> Path | None:
    """The text file beside a picture that is its caption."""
    if not isinstance(example.image, Path):
        return None
    stems: Sequence[str] = (example.image.stem, example.image.name)
    files = (example.image.with_name(stem + suffix) for stem in stems for suffix in CAPTION_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _write(file: Path, caption: str) -> None:
    with replacing(file) as opened_file:
        opened_file.write(caption.encode("utf-8", "replace"))
