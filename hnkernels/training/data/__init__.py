"""Training data: folders, tables, captions and pictures, read and encoded."""

from hnkernels.training.data.captions import CaptionMaker
from hnkernels.training.data.example import Example
from hnkernels.training.data.examples import as_examples, read_image_folder

__all__ = ["CaptionMaker", "Example", "as_examples", "read_image_folder"]
