"""Tensors made as the code that ``torch.compile`` generates makes them: past the dispatcher, which takes longer.

Where PyTorch has no such function they are made the usual way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

_guards = torch._C._dynamo.guards

_ALLOCATE = {kind: getattr(_guards, f"_empty_strided_{kind}", None) for kind in ("cpu", "cuda", "xpu")}


def allocator(
    size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Callable[[], Tensor]:
    """What allocates such a tensor; of a kind of accelerator, on the current one."""
    allocate = _ALLOCATE.get(device.type)
    if allocate is None:
        return partial(torch.empty_strided, size, stride, dtype=dtype, device=device)
    return partial(allocate, size, stride, dtype)


def _as_strided(t: Tensor, size: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
    return t.as_strided(size, stride, t.storage_offset() + offset)


reinterpret: Callable[[Tensor, Sequence[int], Sequence[int], int], Tensor] = getattr(
    _guards, "_reinterpret_tensor", _as_strided
)
"""A part of a tensor, from this element on, with other dimensions; autograd does not know that it is a view."""
