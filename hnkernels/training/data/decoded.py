"""What is read from the files of one example, mirrored or not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hnkernels.errors import InputError
from hnkernels.training.data.buckets import Size
from hnkernels.training.data.example import Example, pixels_of
from hnkernels.training.data.pictures import read_picture


@dataclass(frozen=True)
class Decoded:
    """The pixels of an example.

    Attributes:
        pixels: of the image, [3, height, width] in [-1, 1].
        original_size: width and height of the file's picture in pixels, upright.
        crop: left and top edge of ``pixels`` in that picture once it is scaled.
        weights: of the mask, [1, height, width] in [0, 1]; ``None`` if it is not asked for.
        source: pixels of the picture to be edited; ``None`` if it is not asked for.
    """

    pixels: Tensor
    original_size: Size
    crop: tuple[int, int]
    weights: Tensor | None
    source: Tensor | None


def decode(example: Example, size: Size, flipped: bool, masked: bool, edited: bool) -> Decoded:
    """Reads the files of an example.

    Args:
        example: whose files they are.
        size: width and height in pixels of what is trained on.
        flipped: mirrors everything.
        masked: reads the mask, or the alpha channel, too.
        edited: reads the picture to be edited, too.

    Raises:
        ValueError: a file cannot be decoded, or nothing of a mask is white; the message names it.
    """
    picture = read_picture(example.image, size)
    weights = _turned(example.weights(size), flipped) if masked else None
    if weights is not None and not weights.any():
        raise InputError(
            f"the mask of {example.image} is black all over, so that nothing of it would be trained on; make white "
            "what is to be learned, or remove the picture"
        )
    source = None
    if edited and example.source is not None:
        source = _turned(pixels_of(read_picture(example.source, size).image), flipped)
    pixels = _turned(pixels_of(picture.image), flipped)
    return Decoded(pixels, picture.original_size, picture.crop, weights, source)


def drawn_mask(size: Size, generator: Generator) -> Tensor:
    """What is to be painted, [1, height, width]: a rectangle, or everything for one picture in four, as such models
    were trained."""
    width, height = size
    if _chance(generator) < 0.25:
        return torch.ones(1, height, width)
    mask = torch.zeros(1, height, width)
    spans = []
    for side in (height, width):
        length = max(1, round(side * (0.1 + 0.8 * _chance(generator))))
        start = int((side - length) * _chance(generator))
        spans.append(slice(start, start + length))
    mask[0, spans[0], spans[1]] = 1
    return mask


def _turned(pixels: Tensor, flipped: bool) -> Tensor:
    return pixels.flip(-1) if flipped else pixels


def _chance(generator: Generator) -> float:
    return torch.rand((), generator=generator).item()
