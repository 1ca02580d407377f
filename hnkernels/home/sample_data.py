"""The data set that a new home begins with: handwritten digits for the embedded model."""

from __future__ import annotations

from hnkernels.demo.sample_pictures import write_sample_pictures
from hnkernels.home.folder import Home

HANDWRITING = "handwriting"
"""Its name."""


def write_sample_data(home: Home) -> None:
    """Writes the data set into a home that has no data, for a newcomer to train on.

    Raises:
        OSError: it cannot be written.
    """
    if not home.datasets():
        write_sample_pictures(home.data / HANDWRITING)
