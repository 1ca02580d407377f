"""One picture with its caption, as training uses it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from hnkernels.training.data.buckets import Size
from hnkernels.training.data.masks import read_mask
from hnkernels.training.data.pictures import picture_size, read_picture
from hnkernels.training.data.shard_member import ShardMember


@dataclass(frozen=True)
class Example:
    """One image, as a path, a part of a shard or a PIL image, its caption, and what else is known of it.

    Args:
        image: the picture.
        caption: what it shows.
        condition: what a ``WeightHypernetwork`` is to see of it: a style's name, a mixture ``{style: weight}``, or a
            tensor; ``None`` stands for the caption's text embeddings. All examples of a run have one of a kind, or none
            has one.
        repeats: how many times per epoch it is used.
        mask: a picture that is white where the loss counts (``masked_loss``); ``None`` for the alpha channel.
        source: the picture that a model that edits pictures starts from, with ``image`` as the result.
        size: width and height of ``image`` in pixels, upright, where they are known already.
    """

    image: Path | ShardMember | Image
    caption: str
    condition: Any = None
    repeats: int = 1
    mask: Path | Image | None = None
    source: Path | Image | None = None
    size: Size | None = field(default=None, compare=False)

    def picture_size(self) -> Size:
        """Width and height of the image in pixels, upright.

        Raises:
            ValueError: the image cannot be opened; the message names it.
        """
        return self.size or picture_size(self.image)

    def pixels(self, size: int | Size) -> Tensor:
        """The image as [3, height, width] in [-1, 1]: centre crop, Lanczos resize, transparency on white.

        Args:
            size: width and height in pixels, or the side of a square.

        Raises:
            ValueError: the image cannot be read; the message names it.
        """
        return pixels_of(read_picture(self.image, size).image)

    def weights(self, size: int | Size) -> Tensor:
        """The mask as [1, height, width] in [0, 1], scaled and cropped as ``pixels`` are; see ``read_mask``.

        Raises:
            ValueError: the image or the mask cannot be read, or they differ in aspect ratio; the message names it.
        """
        return torch.from_numpy(read_mask(self.image, size, self.mask))[None]


def pixels_of(image: Image) -> Tensor:
    """An RGB image as [3, height, width] in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
