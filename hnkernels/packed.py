"""Frozen linear weights, prepacked for the CPU's matrix units.

Text contexts have few rows (77 tokens): an ordinary GEMM spends much of its time rearranging the weight. oneDNN can
do that once; PyTorch's own compiler uses the same two operators when it freezes a model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnkernels.memo import Memo

_ROWS_AT_MOST = 1024  # with more rows the rearranging no longer matters


class PackedLinear:
    """``y = x weightᵀ + bias`` for a weight that takes no gradient; gradients flow to x and bias.

    Shape: x [..., d], weight [n, d], bias [n] → [..., n]. Falls back to ``F.linear`` wherever packing does not apply:
    another device or dtype than fp32 on the CPU, a weight that trains, autocast, many rows.
    """

    def __init__(self) -> None:
        self._forward: Memo[Tensor] = Memo()
        self._backward: Memo[Tensor] = Memo()

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _packable(x, weight, bias):
            return F.linear(x, weight, bias)
        packed = self._forward.get([weight], lambda: _pack(weight))
        if not (torch.is_grad_enabled() and x.requires_grad):
            return _apply(x, packed, bias)
        packed_t = self._backward.get([weight], lambda: _pack(weight.t().contiguous()))
        return _PackedLinearFunction.apply(x, packed, packed_t, bias)


def _packable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return bool(
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and 0 < x.numel() // x.shape[-1] <= _ROWS_AT_MOST
        and type(weight) in (Tensor, nn.Parameter)  # a subclass may be quantised
        and not weight.requires_grad
        and (bias is None or not bias.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.compiler.is_compiling()
        and not _transformed()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def _transformed() -> bool:
    # Forward-mode AD and torch.func (vmap, grad) know nothing of the function below.
    return torch.autograd.forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _pack(weight: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)


def _apply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), packed, bias, "none", [], "")


class _PackedLinearFunction(torch.autograd.Function):
    """``y = x weightᵀ + bias`` and ``dx = dy · weight``; each is the other's gradient, to any order."""

    @staticmethod
    def forward(ctx, x, packed, packed_t, bias):
        ctx.packed, ctx.packed_t = packed, packed_t
        return _apply(x, packed, bias)

    @staticmethod
    def backward(ctx, grad):
        return _PackedLinearFunction.apply(grad, ctx.packed_t, ctx.packed, None), None, None, None
