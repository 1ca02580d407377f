"""The MLP's last linear and the projection behind it as one weight, for inference."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.ops.derived import derived


def compose(w: Tensor, b: Tensor | None, mlp: HypernetworkMLP, m: float) -> tuple[Tensor, Tensor]:
    """G and c of ``W (x + m·(W₂ h + b₂)) + b = W x + G h + c``: ``m·W W₂`` and ``m·W b₂ + b``.

    Kept for as long as the weights stay. Shape: w [n, d], b [n], W₂ [d, h] → [n, h] and [n], in w's dtype.
    """
    last = mlp.layers()[-1].linear

    def compute() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), _without_autocast(w.device):
            wide = w.float()
            shift = wide @ last.bias.float() * m
            return (m * (wide @ last.weight.float())).to(w.dtype), (shift if b is None else shift + b).to(w.dtype)

    tensors = [w, last.weight, last.bias, *([] if b is None else [b])]
    return derived(w, ("compose", id(last), id(b)), tensors, compute, extra=m)


def _without_autocast(device: torch.device) -> AbstractContextManager:
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
