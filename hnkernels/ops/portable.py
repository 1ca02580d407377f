"""The plain-torch backend: fast without Triton, on any device, in any floating dtype.

What it saves over running the modules one by one: activations overwrite their input where autograd allows it, the
residual is added in place, a zero multiplier costs nothing, and CPU inference runs on oneDNN with activation and
residual inside the GEMM and frozen weights prepacked. Both first linears as one GEMM is not among it: on the CPU it
does not win (``first_linears`` in ``benchmarks/layers.py``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnkernels.network.activations import resolve
from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.ops import onednn

Chain = tuple[tuple[HypernetworkMLP, float | Tensor], ...]
"""MLPs in order of application, each with its multiplier: a number, or a tensor without dimensions."""


def acts(m: float | Tensor) -> bool:
    """Whether an MLP with this multiplier is to be computed. What a tensor holds is not looked at."""
    return isinstance(m, Tensor) or m != 0


def transform(x: Tensor, chain: Chain) -> Tensor:
    """``x ← x + m·f(x)`` for every (f, m) of the chain. Shape: x [..., d] → [..., d]; x itself if nothing acts."""
    for mlp, m in chain:
        if acts(m):
            x = _residual(x, mlp, m)
    return x


def transform_pair(x: Tensor, chain_k: Chain, chain_v: Chain) -> tuple[Tensor, Tensor]:
    """The K and the V stream of one context. Shape: x [..., d] → two of [..., d]."""
    return transform(x, chain_k), transform(x, chain_v)


def project(y: Tensor, weight: Tensor, bias: Tensor | None, few_rows: bool = False) -> Tensor:
    """``y weightᵀ + bias``. Shape: y [..., d], weight [n, d], bias [n] → [..., n].

    With ``few_rows`` a frozen weight is prepacked in recorded passes too. That takes two copies of it, and is worth it
    for the rows of a text context only.
    """
    if onednn.applies(y, weight, bias) and (few_rows or not _recording(y)):
        return onednn.linear(y, weight, bias)
    return F.linear(y, weight, bias)


def _residual(x: Tensor, mlp: HypernetworkMLP, m: float | Tensor) -> Tensor:
    once = not isinstance(m, Tensor) and m == 1
    # Under autocast, which does not know the meta device, the linears cast for themselves; otherwise the master weights
    # follow the context.
    dtype = None if not x.is_meta and torch.is_autocast_enabled(x.device.type) else x.dtype
    activation = resolve(mlp.config.activation, mlp.config.allow_legacy_activations)
    layers = mlp.layers()
    h = x
    for layer in layers:
        weight, bias = _cast(layer.linear.weight, dtype), _cast(layer.linear.bias, dtype)
        if not torch.is_grad_enabled() and onednn.applies(h, weight, bias):
            bare = layer is layers[-1] and layer.activation is None and layer.norm is None
            if bare and once and not (layer.dropout > 0 and mlp.training):
                return onednn.linear(h, weight, bias, residual=x)
            inside = None if layer.activation is None or activation is None else activation.onednn
            h = onednn.linear(h, weight, bias, inside)
        else:
            inside = None
            h = F.linear(h, weight, bias)
        if layer.activation is not None and activation is not None and inside is None:
            h = _activate(h, layer.activation, activation.inplace, activation.inplace_in_training)
        if layer.norm is not None:
            norm = layer.norm
            h = F.layer_norm(h, norm.normalized_shape, _cast(norm.weight, dtype), _cast(norm.bias, dtype), norm.eps)
        if layer.dropout > 0 and mlp.training:
            h = F.dropout(h, layer.dropout, training=True)
    if isinstance(m, Tensor):
        return torch.addcmul(x, h, m.detach())
    if once and h.dtype == x.dtype and _overwritable(h, mlp):
        return h.add_(x)
    return torch.add(x, h, alpha=m)


def _activate(h: Tensor, module: nn.Module, inplace: Callable[[Tensor], Tensor] | None, in_training: bool) -> Tensor:
    if isinstance(module, nn.PReLU):
        return F.prelu(h, module.weight.to(h.dtype))
    if inplace is not None and (in_training or not _recording(h)):
        return inplace(h)
    return module(h)


def _overwritable(h: Tensor, mlp: HypernetworkMLP) -> bool:
    """Whether autograd can do without the value of h, the output of the MLP's last sub-layer."""
    last = mlp.layers()[-1]
    return not _recording(h) or last.activation is None or last.norm is not None


def _recording(h: Tensor) -> bool:
    return torch.is_grad_enabled() and h.requires_grad


def _cast(parameter: Tensor, dtype: torch.dtype | None) -> Tensor:
    return parameter if dtype is None else parameter.to(dtype)
