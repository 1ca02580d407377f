"""Pictures of digits in several styles: real handwriting, and print that leans to either side or is bold.

Like ``glyphs``'s pictures they are dark ink on white, 32x32 RGB uint8, and a function of the seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from hnkernels.demo.glyphs import CHARACTERS, SUPERSAMPLE, Pictures, caption, draw_mask, handwritten_digits, ink_to_rgb
from hnkernels.errors import InputError

SLANT = 25.0  # degrees; the most that the base model knows are the 11 of the oblique fonts
_REGULAR, _BOLD = "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"


def sheared(mask: Image.Image, degrees: float) -> Image.Image:
    """An ink mask leaned to the right about its middle, upright strokes by as many degrees."""
    shear = math.tan(math.radians(degrees))
    matrix = (1.0, shear, -shear * mask.height / 2, 0.0, 1.0, 0.0)
    return mask.transform(mask.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def thickened(mask: Image.Image, pixels: float) -> Image.Image:
    """An ink mask with as many final pixels more ink at every edge, or less."""
    reach = round(abs(pixels) * SUPERSAMPLE)
    if not reach:
        return mask
    return mask.filter((ImageFilter.MaxFilter if pixels > 0 else ImageFilter.MinFilter)(2 * reach + 1))


def _slanted(rng: np.random.Generator, digit: int) -> Image.Image:
    return sheared(_printed(rng, digit, _REGULAR), SLANT)


def _leaning(rng: np.random.Generator, digit: int) -> Image.Image:
    return sheared(_printed(rng, digit, _REGULAR), -SLANT)


def _bold(rng: np.random.Generator, digit: int) -> Image.Image:
    return thickened(_printed(rng, digit, _BOLD), 0.75)


_PRINTED: dict[str, Callable[[np.random.Generator, int], Image.Image]] = {
    "slanted": _slanted,
    "leaning": _leaning,
    "bold": _bold,
}
STYLES = ("handwriting", *_PRINTED)


def styled_digits(style: str, count: int, seed: int, split: str = "train") -> Pictures:
    """Digits of one style, with captions such as "digit seven" that do not name it.

    Args:
        style: one of STYLES.
        count: number of pictures, for handwriting at most those that the split has.
        seed: of the numpy Generator that makes every choice.
        split: of the handwriting; see ``handwritten_digits``. Printed styles take another seed for other pictures.

    Raises:
        ValueError: for another style.
    """
    if style not in STYLES:
        raise InputError(f"style is {style!r}; it must be one of {', '.join(STYLES)}")
    rng = np.random.default_rng([seed, STYLES.index(style)])
    if style == "handwriting":
        written = handwritten_digits(split)
        chosen = rng.permutation(len(written))[:count]
        labels = written.labels[chosen]
        return Pictures(written.images[chosen], _captions(labels), labels)
    labels = rng.integers(10, size=count)
    images = np.stack([ink_to_rgb(_PRINTED[style](rng, int(label))) for label in labels])
    return Pictures(images, _captions(labels), labels)


def _captions(labels: np.ndarray) -> list[str]:
    return [caption(int(label)) for label in labels]


def _printed(rng: np.random.Generator, digit: int, font_file: str) -> Image.Image:
    """A digit with modest random size, offset and rotation, as ``printed_glyphs`` has them."""
    return draw_mask(
        CHARACTERS[digit],
        font_file,
        height=rng.uniform(29.0, 34.0),
        offset=tuple(rng.uniform(-1.5, 1.5, size=2)),
        angle=rng.uniform(-2.0, 2.0),
    )
