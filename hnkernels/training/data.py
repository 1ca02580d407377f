"""Images with captions, from a folder or from memory."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Example:
    """One image, as a path or a PIL image, its caption, and what a ``WeightHypernetwork`` is to see of it.

    The condition is a style's name, a mixture ``{style: weight}``, or a tensor; ``None`` stands for the caption's text
    embeddings. All examples of a run have one of a kind, or none has one.
    """

    image: Path | Image
    caption: str
    condition: Any = None

    def pixels(self, resolution: int) -> Tensor:
        """The image as [3, resolution, resolution] in [-1, 1]: centre crop, Lanczos resize, transparency on white.

        Raises:
            ValueError: the file is not a readable image.
        """
        from PIL import Image, ImageOps

        try:
            image = Image.open(self.image) if isinstance(self.image, Path) else self.image
            image = ImageOps.exif_transpose(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = ImageOps.fit(image.convert("RGB"), (resolution, resolution), Image.Resampling.LANCZOS)
        except (OSError, SyntaxError) as error:  # PIL raises SyntaxError for some broken PNGs
            raise ValueError(f"cannot read the image {self.image}: {error}; remove it or save it again") from error
        return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def read_image_folder(folder: str | Path) -> list[Example]:
    """The images of a folder with their captions, in the order of their names.

    With a ``metadata.jsonl`` the folder holds what its lines say (``{"file_name": …, "text": …}``, for a
    ``WeightHypernetwork`` also ``"condition"``, a style's name or ``{style: weight}``). Otherwise every
    image counts, and its caption is the content of the ``.txt`` beside it, or else its file name without extension
    and leading number.

    Raises:
        ValueError: there is no such folder, no image in it, or a line of the metadata cannot be used.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a folder with images and captions")
    metadata = folder / "metadata.jsonl"
    if metadata.is_file():
        examples = _read_metadata(metadata)
    else:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        examples = [Example(path, _caption(path)) for path in paths]
    if not examples:
        raise ValueError(f"{folder} holds no images; accepted are {', '.join(IMAGE_SUFFIXES)}")
    return examples


def _caption(image: Path) -> str:
    sidecar = image.with_suffix(".txt")
    if sidecar.is_file():
        try:
            return sidecar.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{sidecar} is not UTF-8 text: {error}") from error
    return re.sub(r"^[-\d]+\s*", "", image.stem)


def _read_metadata(path: Path) -> list[Example]:
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{path}, line {number}: expected {{"file_name": "…", "text": "…"}}, found {line[:80]!r}'
            ) from None
        image = path.parent / str(name)
        if not image.is_file():
            raise ValueError(f"{path}, line {number}: there is no file {image}")
        examples.append(Example(image, str(text), row.get("condition")))
    return examples


class CaptionMaker:
    """Makes the caption that a training step uses from an example's.

    Args:
        template: ``[filewords]`` stands for the example's caption, ``[name]`` for ``name``.
        name: the network's name.
        shuffle_tags, tag_dropout, caption_dropout: see ``TrainingConfig``.
    """

    def __init__(
        self, template: str, name: str, shuffle_tags: bool = False, tag_dropout: float = 0.0, caption_dropout: float = 0
    ):
        self.template, self.name = template, name
        self.shuffle_tags, self.tag_dropout, self.caption_dropout = shuffle_tags, tag_dropout, caption_dropout

    def __call__(self, caption: str, generator: Generator) -> str:
        if self.caption_dropout and _chance(generator) < self.caption_dropout:
            return ""
        if self.shuffle_tags or self.tag_dropout:
            tags = [tag.strip() for tag in caption.split(",")]
            tags = [tag for tag in tags if not self.tag_dropout or _chance(generator) >= self.tag_dropout]
            if self.shuffle_tags:
                tags = [tags[i] for i in torch.randperm(len(tags), generator=generator).tolist()]
            caption = ", ".join(tags)
        return self.template.replace("[filewords]", caption).replace("[name]", self.name)


def _chance(generator: Generator) -> float:
    return torch.rand((), generator=generator).item()


def as_examples(data: str | Path | Sequence[Example] | Sequence[tuple]) -> list[Example]:
    """Examples from what a user may pass: a folder, or a sequence of ``Example`` or (image or path, caption), with or
    without a condition as the third."""
    if isinstance(data, (str, Path)):
        return read_image_folder(data)
    examples = []
    for item in data:
        if not isinstance(item, Example):
            try:
                image, caption, *condition = item
                [condition] = condition or [None]
            except (TypeError, ValueError):
                raise ValueError(f"data must hold (image, caption) pairs, found {type(item).__name__}") from None
            item = Example(Path(image) if isinstance(image, str) else image, str(caption), condition)
        examples.append(item)
    if not examples:
        raise ValueError("data is empty; give a folder with images, or (image, caption) pairs")
    return examples
