"""The two picture sets of the demo: printed characters (what the embedded model knows) and real handwriting (what a
hypernetwork teaches it).

Both come as dark ink on white, 32x32 RGB uint8, and are a function of their seed alone. Printed characters are rendered
with the DejaVu fonts that matplotlib ships; handwriting is scikit-learn's copy of the UCI optical digits (8x8 pixels,
16 grey levels, 1797 samples; Alpaydin & Kaynak, 1998). Neither needs a network.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hnkernels.errors import InputError

SIZE = 32
SUPERSAMPLE = 4
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FONT_FILES = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSerif-BoldItalic.ttf",
)
HANDWRITING_SPLITS = ("train", "held_out")
HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class Pictures:
    """A captioned picture set.

    Attributes:
        images: uint8 [count, 32, 32, 3], dark ink on white.
        captions: one text per image.
        labels: int64 [count], index into CHARACTERS (so a digit's label is its value).
    """

    images: np.ndarray
    captions: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.captions)


def caption(label: int, printed: bool = False) -> str:
    """The words for one character: "digit seven", "letter b", with ", printed" appended on request."""
    name = f"digit {DIGIT_WORDS[label]}" if label < 10 else f"letter {CHARACTERS[label].lower()}"
    return f"{name}, printed" if printed else name


def draw_mask(character: str, font_file: str, height: float, offset: tuple[float, float], angle: float) -> Image.Image:
    """Draws one character as an ink mask (0 = paper, 255 = ink) of (32 * SUPERSAMPLE)^2 pixels.

    Args:
        character: one character the font has.
        font_file: a name of FONT_FILES.
        height: size of the em square, in final pixels (capitals are about 0.73 em high).
        offset: displacement of the ink's centre from the image's centre, in final pixels (x right, y down).
        angle: counter-clockwise rotation in degrees.
    """
    side = SIZE * SUPERSAMPLE
    font = _font(font_file, round(height * SUPERSAMPLE))
    left, top, right, bottom = font.getbbox(character)
    position = (
        side / 2 - (left + right) / 2 + offset[0] * SUPERSAMPLE,
        side / 2 - (top + bottom) / 2 + offset[1] * SUPERSAMPLE,
    )
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).text(position, character, fill=255, font=font)
    return mask.rotate(angle, resample=Image.Resampling.BILINEAR)


def ink_to_rgb(mask: Image.Image) -> np.ndarray:
    """Shrinks an ink mask to 32x32 and inverts it: uint8 [32, 32, 3], dark ink on white."""
    small = mask.resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.repeat(255 - np.asarray(small, dtype=np.uint8)[..., None], 3, axis=-1)


def printed_glyphs(count: int, seed: int, digit_share: float = 0.5) -> Pictures:
    """Renders printed characters with modest random font, size, offset and rotation.

    Args:
        count: number of pictures.
        seed: of the numpy Generator that makes every choice.
        digit_share: probability of a digit; the rest are the capitals A-Z. Half of the captions end in ", printed".
    """
    rng = np.random.default_rng(seed)
    images, captions, labels = [], [], []
    for _ in range(count):
        label = int(rng.integers(10) if rng.random() < digit_share else rng.integers(10, len(CHARACTERS)))
        mask = draw_mask(
            CHARACTERS[label],
            FONT_FILES[rng.integers(len(FONT_FILES))],
            height=rng.uniform(29.0, 34.0),
            offset=tuple(rng.uniform(-1.5, 1.5, size=2)),
            angle=rng.uniform(-5.0, 5.0),
        )
        images.append(ink_to_rgb(mask))
        captions.append(caption(label, printed=rng.random() < 0.5))
        labels.append(label)
    return Pictures(np.stack(images), captions, np.array(labels, dtype=np.int64))


def handwritten_digits(split: str, seed: int = 0) -> Pictures:
    """Loads scikit-learn's handwritten digits as 32x32 ink pictures with captions such as "digit seven".

    The 8x8 counts of ink get a margin of one pixel, are enlarged to 32x32 (bicubic), and their soft flanks are
    steepened: plain enlargement would leave a blur by which anything could tell them from print, stroke shapes apart.

    Args:
        split: "train" (75 %) or "held_out" (25 %), disjoint for one seed and stratified by digit.
        seed: of the split.

    Raises:
        ValueError: for another split name.
    """
    if split not in HANDWRITING_SPLITS:
        raise InputError(f"split is {split!r}; it must be one of {', '.join(HANDWRITING_SPLITS)}")
    from sklearn.datasets import load_digits  # slow to import, and only this function needs it

    counts, labels = load_digits(return_X_y=True)
    chosen = _stratified(labels, split, seed)
    images = np.stack([_enlarge(counts[i].reshape(8, 8)) for i in chosen])
    labels = labels[chosen].astype(np.int64)
    return Pictures(images, [caption(int(label)) for label in labels], labels)


def contact_sheet(images: np.ndarray | Sequence[np.ndarray], columns: int, zoom: int = 2) -> Image.Image:
    """Lays pictures (uint8 [count, 32, 32, 3]) out in rows of `columns`, each enlarged `zoom` times, with thin gaps."""
    cell = SIZE * zoom + 2
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell + 2, rows * cell + 2), (200, 200, 200))
    for index, image in enumerate(images):
        tile = Image.fromarray(image).resize((SIZE * zoom, SIZE * zoom), Image.Resampling.NEAREST)
        sheet.paste(tile, (2 + index % columns * cell, 2 + index // columns * cell))
    return sheet


def _stratified(labels: np.ndarray, split: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chosen = []
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(labels == digit))
        held_out = round(len(order) * HELD_OUT_SHARE)
        chosen.append(order[:held_out] if split == "held_out" else order[held_out:])
    return np.sort(np.concatenate(chosen))


def _enlarge(counts: np.ndarray) -> np.ndarray:
    grey = Image.fromarray(np.pad(counts / 16.0 * 255.0, 1).astype(np.uint8))
    ink = np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 255.0
    level = np.clip((ink - 0.25) / 0.5, 0.0, 1.0)
    picture = np.round(255.0 * (1.0 - level * level * (3.0 - 2.0 * level))).astype(np.uint8)
    return np.repeat(picture[..., None], 3, axis=-1)


@functools.lru_cache(maxsize=256)
def _font(font_file: str, pixels: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font_file), pixels)
