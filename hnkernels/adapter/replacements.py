"""Projections that another tool puts modules in the place of: what was made of them is forgotten at that moment."""

from __future__ import annotations

from functools import lru_cache

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from hnkernels.adapter.taps import Tap
from hnkernels.ops import derived, onednn


@lru_cache
def watch_projections() -> None:
    """From now on, forgets what was computed from projections when another tool puts a module in their place.

    Merging a LoRA and taking its modules out again leaves the old module with new values, written through ``.data``
    without a trace in the version counter; that it is put back is the trace. One hook for all models, for copies too.
    """
    register_module_module_registration_hook(_forget_replaced)


def _forget_replaced(parent: nn.Module, name: str, module: object) -> None:
    for candidate in (parent._modules.get(name), module):
        forward = getattr(candidate, "__dict__", {}).get("forward")
        tap = getattr(forward, "__self__", None)
        if isinstance(tap, Tap) and tap.runs is not None:
            tap.runs.forget_all()
            onednn.forget()
            derived.forget()
