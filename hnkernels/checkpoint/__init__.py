"""Hypernetwork files: AUTOMATIC1111's ``.pt`` and safetensors, read without trust and written atomically."""

from hnkernels.checkpoint.errors import CheckpointError
from hnkernels.checkpoint.files import load_hypernetwork, save_hypernetwork
from hnkernels.checkpoint.optim import (
    OptimizerState,
    load_optimizer_state,
    restore_optimizer_state,
    save_optimizer_state,
)
from hnkernels.checkpoint.summary import describe

__all__ = [
    "CheckpointError",
    "OptimizerState",
    "describe",
    "load_hypernetwork",
    "load_optimizer_state",
    "restore_optimizer_state",
    "save_hypernetwork",
    "save_optimizer_state",
]
