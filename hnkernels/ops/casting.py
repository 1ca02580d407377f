"""Parameters in another dtype: kept where no gradient flows through them, for one call of a model where one does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from hnkernels.ops.derived import derived

Casts = dict[tuple[int, torch.dtype, int, bool], tuple[Tensor, Tensor]]
"""(id of the parameter, dtype, version, whether in a backward pass) → the parameter, so that its id stays its own, and
its copy."""

_casts: ContextVar[Casts | None] = ContextVar("casts", default=None)


def exchange_casts(casts: Casts | None) -> Casts | None:
    """From now on in this thread, keeps casts here (``None``: nowhere), as eager PyTorch's autocast does; returns where
    they were kept. For hooks at the beginning and the end of a model's call."""
    before = _casts.get()
    _casts.set(casts)
    return before


@contextmanager
def keeping_casts() -> Iterator[None]:
    """Within it, one call of a model, every parameter is cast once."""
    before = exchange_casts({})
    try:
        yield
    finally:
        exchange_casts(before)


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t`` in another dtype."""
    if t.dtype == dtype:
        return t
    if not (torch.is_grad_enabled() and t.requires_grad):
        return derived(t, ("cast", dtype), [t], lambda: t.detach().to(dtype))
    casts = None if torch.compiler.is_compiling() else _casts.get()
    if casts is None:
        return t.to(dtype)
    key = (id(t), dtype, t._version, torch._C._current_graph_task_id() != -1)
    if key not in casts:
        casts[key] = (t, t.to(dtype))
    return casts[key][1]
