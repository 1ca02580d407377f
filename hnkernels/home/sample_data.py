"""The data set that a new home begins with: handwritten digits for the embedded model."""

from __future__ import annotations

import numpy as np

from hnkernels.checkpoint.atomic import placing
from hnkernels.demo.glyphs import Pictures, handwritten_digits
from hnkernels.demo.run import write_image_folder
from hnkernels.home.folder import Home

HANDWRITING = "handwriting"
"""Its name."""

_PICTURES = 256  # as in the study, whose settings are what the page begins with


def write_sample_data(home: Home) -> None:
    """Writes the data set into a home that has no data, for a newcomer to train on.

    Raises:
        OSError: it cannot be written.
    """
    if home.datasets():
        return
    pictures = handwritten_digits("train")
    chosen = np.random.default_rng(0).permutation(len(pictures))[:_PICTURES]
    some = Pictures(pictures.images[chosen], [pictures.captions[i] for i in chosen], pictures.labels[chosen])
    with placing(home.data / HANDWRITING) as folder:
        write_image_folder(some, folder)
