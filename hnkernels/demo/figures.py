"""The demos' pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hnkernels.demo.glyphs import DIGIT_WORDS, SIZE

_ZOOM = 2
_GAP = 2
_CELL = SIZE * _ZOOM + _GAP
_LABEL_WIDTH = 110
_HEAD_HEIGHT = 24


def before_after(pictures: Mapping[float, np.ndarray], seeds: int, shown: int) -> Image.Image:
    """Digits as columns; for every strength ``shown`` rows, each of one seed, so that columns compare like with like.

    Args:
        pictures: strength → uint8 [10 · seeds, 32, 32, 3], sorted by digit.
        seeds: pictures per digit.
        shown: how many of them to show.
    """
    return digit_sheet({f"strength {strength:g}": images for strength, images in pictures.items()}, seeds, shown)


def digit_sheet(pictures: Mapping[str, np.ndarray], seeds: int, shown: int) -> Image.Image:
    """Digits as columns; for every label ``shown`` rows, each of one seed.

    Args:
        pictures: label → uint8 [10 · seeds, 32, 32, 3], sorted by digit.
        seeds: pictures per digit.
        shown: how many of them to show.
    """
    blocks = {}
    for label, images in pictures.items():
        by_digit = images.reshape(len(DIGIT_WORDS), seeds, *images.shape[1:])
        blocks[label] = by_digit[:, :shown].swapaxes(0, 1)
    return sheet(blocks)


def sheet(blocks: Mapping[str, np.ndarray], heads: Sequence[str] = ()) -> Image.Image:
    """Blocks of pictures below one another, their labels at the left.

    Args:
        blocks: label → uint8 [rows, columns, 32, 32, 3].
        heads: what to write above the columns, if anything.
    """
    font = ImageFont.load_default(size=16)
    left = max(_LABEL_WIDTH, *(8 + round(font.getlength(label)) for label in blocks))
    top = _HEAD_HEIGHT if heads else 0
    columns = max(block.shape[1] for block in blocks.values())
    height = top + sum(len(block) * _CELL + 3 * _GAP for block in blocks.values())
    image = Image.new("RGB", (left + columns * _CELL, height), "white")
    draw = ImageDraw.Draw(image)
    for column, head in enumerate(heads):
        draw.text((left + column * _CELL, 2), head, fill="black", font=font)
    for label, block in blocks.items():
        draw.text((4, top + (len(block) * _CELL + 3 * _GAP) // 2 - 10), label, fill="black", font=font)
        for row, pictures in enumerate(block):
            for column, picture in enumerate(pictures):
                tile = Image.fromarray(picture).resize((SIZE * _ZOOM,) * 2, Image.Resampling.BICUBIC)
                image.paste(tile, (left + column * _CELL, top + row * _CELL))
        top += len(block) * _CELL + 3 * _GAP
    return image


def loss_curve(losses: Sequence[float], path: Path, window: int = 25) -> None:
    """Writes the loss per step and its running mean over ``window`` steps as a PNG."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(range(1, len(losses) + 1), losses, color="0.8", linewidth=1, label="loss of the step")
    if len(losses) >= window:
        mean = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(range(window, len(losses) + 1), mean, color="C0", label=f"mean of {window} steps")
    axes.set_xlabel("step")
    axes.set_ylabel("denoising loss")
    axes.legend()
    figure.savefig(path, dpi=120)
