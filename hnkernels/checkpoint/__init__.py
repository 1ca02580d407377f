"""Hypernetwork files: AUTOMATIC1111's ``.pt`` and safetensors, read without trust and written atomically.

The names load on first use: what writes files atomically needs no PyTorch, and a run that waits no memory.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hnkernels.checkpoint.errors import CheckpointError

_HOME = {
    "OptimizerState": "hnkernels.checkpoint.optim",
    "describe": "hnkernels.checkpoint.summary",
    "load_hypernetwork": "hnkernels.checkpoint.files",
    "load_optimizer_state": "hnkernels.checkpoint.optim",
    "restore_optimizer_state": "hnkernels.checkpoint.optim",
    "save_hypernetwork": "hnkernels.checkpoint.files",
    "save_optimizer_state": "hnkernels.checkpoint.optim",
}

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

if TYPE_CHECKING:
    from hnkernels.checkpoint.files import load_hypernetwork, save_hypernetwork
    from hnkernels.checkpoint.optim import (
        OptimizerState,
        load_optimizer_state,
        restore_optimizer_state,
        save_optimizer_state,
    )
    from hnkernels.checkpoint.summary import describe


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value
