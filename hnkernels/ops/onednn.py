"""Linear layers on the CPU with prepacked weights, activation and residual inside the GEMM.

An ordinary GEMM spends much of its time rearranging the weight, most of all for the few rows of a text context. oneDNN
can do that once, and apply what follows the product while it is still in the cache. The operators are those that
PyTorch's own compiler uses when it freezes a model. Only a weight that takes no gradient (``requires_grad=False``) is
prepacked: some optimisers change weights without a trace, and a packed copy would not notice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from hnkernels.ops.memo import Memo, forget_after_steps

LEAST_ELEMENTS = 128 * 128
"""Smaller weights are not worth the detour."""

# Weight → its packed forms. A cache and nothing more: gone with the weight, remade when the weight changes.
_packs: WeakIdKeyDictionary = WeakIdKeyDictionary()


class _Pack:
    def __init__(self) -> None:
        self.forward: Memo[Tensor] = Memo()
        self.backward: Memo[Tensor] = Memo()


def applies(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether ``linear`` can take these: plain fp32 on the CPU, and no gradient wanted for weight and bias."""
    return bool(
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.numel() >= LEAST_ELEMENTS
        and x.numel() > 0
        and type(weight) in (Tensor, nn.Parameter)  # a subclass may be quantised
        and not (torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)))
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        # Forward-mode AD and torch.func (vmap, grad) know nothing of the autograd function below.
        and torch.autograd.forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None  # torch.jit.trace has no name for a packed weight
    )


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None, residual: Tensor | None = None
) -> Tensor:
    """``activation(x weightᵀ + bias)``, or ``x weightᵀ + bias + residual``; where ``applies`` is true.

    Args:
        x: [..., d]. Gradients flow to it if neither activation nor residual is given.
        weight: [n, d].
        bias: [n].
        activation: oneDNN's name of it.
        residual: [..., n].

    Returns:
        [..., n].
    """
    if weight.requires_grad:
        pack, packed = None, weight
    else:
        forget_after_steps(forget)
        pack = _packs.get(weight)
        if pack is None:
            pack = _packs[weight] = _Pack()
        packed = pack.forward.get([weight], _packing(weight, transposed=False))
    if residual is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(x.contiguous(), residual.contiguous(), packed, bias, "add")
    if pack is None or activation is not None or not (torch.is_grad_enabled() and x.requires_grad):
        return _apply(x, packed, bias, activation or "none")
    packed_t = pack.backward.get([weight], _packing(weight, transposed=True))
    return _PackedLinear.apply(x, packed, packed_t, bias)


def forget() -> None:
    """Drops every packed weight."""
    _packs.clear()


def _packing(weight: Tensor, transposed: bool) -> Callable[[], Tensor]:
    def pack() -> Tensor:
        plain = weight.detach()
        return torch.ops.mkldnn._reorder_linear_weight((plain.t() if transposed else plain).contiguous(), None)

    return pack


def _apply(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), packed, bias, activation, [], "")


class _PackedLinear(torch.autograd.Function):
    """``y = x weightᵀ + bias`` and ``dx = dy · weight``; each is the other's gradient, to any order."""

    @staticmethod
    def forward(ctx, x, packed, packed_t, bias):
        ctx.packed, ctx.packed_t = packed, packed_t
        return _apply(x, packed, bias, "none")

    @staticmethod
    def backward(ctx, grad):
        return _PackedLinear.apply(grad, ctx.packed_t, ctx.packed, None), None, None, None
