"""Folders of pictures with captions, as people train on them; and one of handwritten digits to begin with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hnkernels.checkpoint.atomic import placing
from hnkernels.demo.glyphs import Pictures, handwritten_digits

_PICTURES = 256  # as in the study, whose settings are what the page begins with


def write_sample_pictures(folder: Path) -> None:
    """Writes handwritten digits for the embedded model into a new folder, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    pictures = handwritten_digits("train")
    chosen = np.random.default_rng(0).permutation(len(pictures))[:_PICTURES]
    some = Pictures(pictures.images[chosen], [pictures.captions[i] for i in chosen], pictures.labels[chosen])
    with placing(folder) as place:
        write_image_folder(some, place)


def write_image_folder(pictures: Pictures, folder: Path) -> None:
    """PNG files with ``.txt`` captions beside them, as any training folder."""
    folder.mkdir(parents=True)
    for index, (image, text) in enumerate(zip(pictures.images, pictures.captions, strict=True)):
        Image.fromarray(image).save(folder / f"{index:04d}.png")
        (folder / f"{index:04d}.txt").write_text(text, encoding="utf-8")
