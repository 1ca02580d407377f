"""The demo's two pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hnkernels.demo.glyphs import DIGIT_WORDS, SIZE

_ZOOM = 2
_GAP = 2
_LABEL_WIDTH = 110


def before_after(pictures: Mapping[float, np.ndarray], seeds: int, shown: int) -> Image.Image:
    """Digits as columns; for every strength ``shown`` rows, each of one seed, so that columns compare like with like.

    Args:
        pictures: strength → uint8 [10 · seeds, 32, 32, 3], sorted by digit.
        seeds: pictures per digit.
        shown: how many of them to show.
    """
    cell = SIZE * _ZOOM + _GAP
    block = shown * cell + 3 * _GAP
    sheet = Image.new("RGB", (_LABEL_WIDTH + len(DIGIT_WORDS) * cell, len(pictures) * block), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    for number, (strength, images) in enumerate(pictures.items()):
        top = number * block
        draw.text((4, top + block // 2 - 10), f"strength {strength:g}", fill="black", font=font)
        for digit in range(len(DIGIT_WORDS)):
            for row in range(shown):
                tile = Image.fromarray(images[digit * seeds + row]).resize(
                    (SIZE * _ZOOM,) * 2, Image.Resampling.BICUBIC
                )
                sheet.paste(tile, (_LABEL_WIDTH + digit * cell, top + row * cell))
    return sheet


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
