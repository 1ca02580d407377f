"""What the launchers share: how streams are passed, the arguments that follow from dtypes, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from hnkernels.triton.target import tf32_allowed

Streams = tuple[Tensor, ...]
"""The same thing for the K and the V stream; or one alone, where a single MLP runs."""

EPS = 1e-5
"""LayerNorm's epsilon in every hypernetwork."""


class Dropout(NamedTuple):
    """Active dropout of one layer: probability, the tensor with the seed, the layer's number for the generator."""

    p: float
    seed: Tensor
    layer_id: int


class LayerGradient(NamedTuple):
    """The gradient of a layer's pre-activations, [streams, M, N], and what goes with it.

    Attributes:
        da: itself.
        h: the layer's output once more, like da.
        dots: what a LayerNorm in front of the layer's product needs of da, [streams, tiles, M, 2].
        bias: Σ da in parts, [parts, streams · N] fp32.
    """

    da: Tensor
    h: Tensor | None = None
    dots: Tensor | None = None
    bias: Tensor | None = None


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products and statistics are added up in. float64 occurs in gradient checks only."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product(dtype: torch.dtype) -> dict[str, Any]:
    """ACC and PRECISION. fp32 is fp32, as in PyTorch, unless the user allows TF32 there too."""
    precision = "tf32" if dtype == torch.float32 and tf32_allowed() else "ieee"
    return {"ACC": tl_dtype(acc_dtype(dtype)), "PRECISION": precision}


def tl_dtype(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


_in_graphs: list[Tensor] = []  # tables that captured graphs copy from, each time they are replayed


def table_on(device: torch.device, rows: Sequence[Sequence[int]], dtype: torch.dtype = torch.int64) -> Tensor:
    """A table for a kernel, in the device's memory. Nobody waits for the copy: it comes from pinned memory."""
    table = torch.tensor(rows, dtype=dtype)
    if device.type == "cuda":
        table = table.pin_memory()
        if torch.cuda.is_current_stream_capturing():
            _in_graphs.append(table)
    return table.to(device, non_blocking=True)
