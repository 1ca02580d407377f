"""Modules that another tool puts in the place of projections, or beside them: what they change, at that moment."""

from __future__ import annotations

from functools import lru_cache

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from hnkernels.adapter.taps import Runs, Tap
from hnkernels.ops import derived, onednn


@lru_cache
def watch_projections() -> None:
    """From now on, forgets what was computed from projections when another tool puts a module in their place, and has
    the next call look whether it reaches them when one is put beside them.

    Merging a LoRA and taking its modules out again leaves the old module with new values, written through ``.data``
    without a trace in the version counter; that it is put back is the trace. One hook for all models, for copies too.
    """
    register_module_module_registration_hook(_forget_replaced)


def _forget_replaced(parent: nn.Module, name: str, module: object) -> None:
    for candidate in (parent._modules.get(name), module):
        runs = _runs_of(candidate)
        if runs is not None:
            runs.forget_all()
            onednn.forget()
            derived.forget()
    if isinstance(parent, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):  # no attention, but maybe long
        return
    for child in parent._modules.values():
        runs = _runs_of(child)
        if runs is not None:  # projections fused into one, say
            runs.doubt()


def _runs_of(module: object) -> Runs | None:
    tap = getattr(getattr(module, "__dict__", {}).get("forward"), "__self__", None)
    return tap.runs if isinstance(tap, Tap) else None
