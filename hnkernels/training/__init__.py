"""Training hypernetworks on a frozen base model.

``train_hypernetwork`` is one optimiser step; ``HypernetworkTrainer`` is the whole job. Every random number of a run is
a function of the seed and the step, so that a resumed run continues bit for bit.
"""

from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.example import Example
from hnkernels.training.data.examples import read_image_folder
from hnkernels.training.losses import Mixture, Penalty, Reconstruction, denoising
from hnkernels.training.run import DivergenceError, TrainingResult
from hnkernels.training.schedule import Schedule
from hnkernels.training.step import train_hypernetwork
from hnkernels.training.trainer import HypernetworkTrainer

__all__ = [
    "DivergenceError",
    "Example",
    "HypernetworkTrainer",
    "Mixture",
    "Penalty",
    "Reconstruction",
    "Schedule",
    "TrainingConfig",
    "TrainingResult",
    "denoising",
    "read_image_folder",
    "train_hypernetwork",
]
