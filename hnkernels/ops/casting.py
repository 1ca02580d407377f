"""Parameters in another dtype: kept where no gradient flows through them, for one call of a model where one does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from hnkernels.ops.derived import derived

_Casts = dict[tuple[int, torch.dtype, int, bool], tuple[Tensor, Tensor]]

_casts: ContextVar[_Casts | None] = ContextVar("casts", default=None)


@contextmanager
def keeping_casts() -> Iterator[None]:
    """Within it, one call of a model, every parameter is cast once, as eager PyTorch's autocast does it."""
    token = _casts.set({})
    try:
        yield
    finally:
        _casts.reset(token)


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
