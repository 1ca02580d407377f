"""Training pictures for the embedded model's autoencoder: ink of every thickness, softness, slant and shade.

The autoencoder has to reproduce handwriting although it must never see any (the demo's held-out scores would say less).
So it learns from rendered characters and random curves that are distorted far more than the printed glyphs are.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from hnkernels.demo.glyphs import CHARACTERS, FONT_FILES, SIZE, SUPERSAMPLE, draw_mask, ink_to_rgb

_SIDE = SIZE * SUPERSAMPLE


def stroke_pictures(count: int, seed: int, plain_share: float = 0.3) -> np.ndarray:
    """Makes pictures of strongly varied ink: uint8 [count, 32, 32, 3], dark on white.

    Args:
        count: number of pictures.
        seed: of the numpy Generator that makes every choice.
        plain_share: share of pictures that are cleanly rendered characters; one fifth of the rest are random curves,
            the others distorted characters.
    """
    rng = np.random.default_rng(seed)
    return np.stack([_picture(rng, plain_share) for _ in range(count)])


def _picture(rng: np.random.Generator, plain_share: float) -> np.ndarray:
    plain = rng.random() < plain_share
    if not plain and rng.random() < 0.2:
        return _finish(_curves(rng), rng)
    mask = draw_mask(
        CHARACTERS[rng.integers(len(CHARACTERS))],
        FONT_FILES[rng.integers(len(FONT_FILES))],
        height=rng.uniform(24.0, 38.0),
        offset=tuple(rng.uniform(-3.0, 3.0, size=2)),
        angle=rng.uniform(-8.0, 8.0) if plain else rng.uniform(-25.0, 25.0),
    )
    return ink_to_rgb(mask) if plain else _finish(_bend(mask, rng), rng)


def _curves(rng: np.random.Generator) -> Image.Image:
    """One to three quadratic Bezier strokes."""
    mask = Image.new("L", (_SIDE, _SIDE), 0)
    draw = ImageDraw.Draw(mask)
    t = np.linspace(0.0, 1.0, 24)[:, None]
    for _ in range(rng.integers(1, 4)):
        start, middle, end = rng.uniform(0.1, 0.9, size=(3, 2)) * _SIDE
        points = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
        draw.line([tuple(p) for p in points], fill=255, width=int(rng.integers(6, 24)), joint="curve")
    return mask


def _bend(mask: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shears and stretches the ink about the image's centre, then displaces it by a smooth wave."""
    shear_x, shear_y = rng.uniform(-0.3, 0.3, size=2)
    stretch_x, stretch_y = np.exp(rng.uniform(-0.25, 0.25, size=2))
    matrix = np.array([[stretch_x, shear_x], [shear_y, stretch_y]])
    shift = _SIDE / 2 * (1.0 - matrix.sum(axis=1))
    mask = mask.transform(
        mask.size,
        Image.Transform.AFFINE,
        (*matrix[0], shift[0], *matrix[1], shift[1]),
        resample=Image.Resampling.BILINEAR,
    )
    amplitude = rng.uniform(0.0, 8.0, size=2)
    phase = rng.uniform(0.0, 2 * math.pi, size=2)
    period = rng.uniform(0.6, 1.5, size=2) * _SIDE
    y, x = np.mgrid[:_SIDE, :_SIDE]
    source_x = np.clip(x + amplitude[0] * np.sin(2 * math.pi * y / period[0] + phase[0]), 0, _SIDE - 1).astype(np.intp)
    source_y = np.clip(y + amplitude[1] * np.sin(2 * math.pi * x / period[1] + phase[1]), 0, _SIDE - 1).astype(np.intp)
    return Image.fromarray(np.asarray(mask)[source_y, source_x])


def _finish(mask: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Varies the pen: thickness, coarse pixels, softness and shade."""
    thicken = rng.integers(-1, 4)
    if thicken > 0:
        mask = mask.filter(ImageFilter.MaxFilter(int(2 * thicken + 1)))
    elif thicken < 0:
        mask = mask.filter(ImageFilter.MinFilter(3))
    if rng.random() < 0.4:
        coarse = int(rng.integers(8, 15))
        mask = mask.resize((coarse, coarse), Image.Resampling.BOX).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 4.0)))
    ink = np.asarray(mask, dtype=np.float32) / 255.0
    steepness = rng.uniform(1.0, 2.5)
    ink = np.clip(0.5 + steepness * (ink - rng.uniform(0.3, 0.5)), 0.0, 1.0) * rng.uniform(0.75, 1.0)
    return ink_to_rgb(Image.fromarray(np.round(255.0 * ink).astype(np.uint8)))
