"""What hnkernels is compared with: the web UIs' way on the reference modules, the kernels' algebra in eager PyTorch.

The web UIs evaluate one pair of MLPs per attention layer (``patch``). ``hyper_kv`` is what is left of the gain when the
operations are fused as far as eager PyTorch goes: residual inside ``addmm``, the last bias inside the projection's,
activations in place where autograd allows it, frozen projections, and at inference the last linear composed with the
projection, or an affine network folded into it. It takes the ``[1, h, 1]`` networks of ``reference.MLP`` without
dropout, with any pointwise activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import hnkernels as hn
import reference
from hnkernels.adapter.layers import find_attention

_IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.SiLU: partial(F.silu, inplace=True),
    nn.Hardswish: partial(F.hardswish, inplace=True),
    nn.Mish: partial(F.mish, inplace=True),
    nn.Tanh: torch.tanh_,
    nn.Sigmoid: torch.sigmoid_,
}
_IN_PLACE_IN_TRAINING = (nn.ReLU, nn.Tanh, nn.Sigmoid)
"""Those whose derivative needs the output alone."""


class Composed(NamedTuple):
    """A projection with the MLP's last linear, or a whole affine MLP, in it: ``x wᵀ + h gᵀ + c``.

    Shape: w [n, d]; g [n, h], or ``None`` where the MLP is affine and w does all of its work; c [n].
    """

    w: Tensor
    g: Tensor | None
    c: Tensor


class _Parts(NamedTuple):
    """The sub-layers of ``[1, h, 1]``."""

    first: nn.Linear
    activation: nn.Module | None
    norm: nn.LayerNorm | None
    last: nn.Linear
    last_activation: nn.Module | None
    last_norm: nn.LayerNorm | None


def reference_pair(net: hn.Hypernetwork, size: int) -> tuple[reference.MLP, reference.MLP]:
    """The reference's copies of a network's K and V MLPs for contexts of this width."""
    pair = []
    for mlp in net[size]:
        config = mlp.config
        copy = reference.MLP(
            mlp.dim,
            config.layer_structure,
            config.activation,
            config.layer_norm,
            config.dropout_structure,
            config.activate_output,
        )
        copy.load_state_dict(mlp.state_dict())
        pair.append(copy.train(mlp.training))
    return pair[0], pair[1]


def reference_net(net: hn.Hypernetwork) -> nn.ModuleDict:
    """The reference's copy of a network: width → [K MLP, V MLP]."""
    return nn.ModuleDict({str(size): nn.ModuleList(reference_pair(net, size)) for size in net})


def patch(model: nn.Module, mlps: nn.ModuleDict, targets: Sequence[str] = ("attn1", "attn2")) -> Callable[[], None]:
    """Puts MLPs, as ``reference_net`` has them, in front of every ``to_k`` and ``to_v`` of the layers of these kinds;
    returns what takes them out again."""
    handles = []
    for spec in find_attention(model):
        if spec.kind in targets and str(spec.width) in mlps:
            mlp_k, mlp_v = mlps[str(spec.width)].children()
            for name, mlp in (("to_k", mlp_k), ("to_v", mlp_v)):
                handles.append(spec.module.get_submodule(name).register_forward_pre_hook(_rewriter(mlp)))

    return remover(handles)


def remover(handles: Sequence[RemovableHandle]) -> Callable[[], None]:
    """What takes hooks away."""

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def _rewriter(mlp: nn.Module) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    """A forward pre-hook that gives a linear what the MLP makes of its input."""
    return lambda module, args: mlp(args[0])


def hyper_kv(
    x: Tensor,
    mlp_k: reference.MLP,
    mlp_v: reference.MLP,
    w_k: Tensor,
    w_v: Tensor,
    *,
    composed: tuple[Composed, Composed] | None = None,
) -> tuple[Tensor, Tensor]:
    """``K = (x + m·f_k(x)) w_kᵀ``, V likewise; differentiable, except with ``composed``, which is for inference.

    Args:
        x: [..., d], in the parameters' dtype.
        mlp_k, mlp_v: ``[1, h, 1]`` each.
        w_k, w_v: [n, d].
        composed: ``compose(mlp_k, w_k)`` and ``compose(mlp_v, w_v)``, made beforehand.

    Returns:
        K and V, [..., n].

    Raises:
        ValueError: an MLP has another structure.
    """
    rows = x.reshape(-1, x.shape[-1])
    if composed is None:
        results = [_projected(rows, _parts(mlp), _multiplier(mlp), w) for mlp, w in ((mlp_k, w_k), (mlp_v, w_v))]
    else:
        results = [_inferred(rows, _parts(mlp), c) for mlp, c in zip((mlp_k, mlp_v), composed, strict=True)]
    k, v = (t.view(*x.shape[:-1], t.shape[-1]) for t in results)
    return k, v


@torch.no_grad()
def compose(mlp: reference.MLP, w: Tensor) -> Composed:
    """What inference computes once, in fp32, and keeps in w's dtype: ``G = m·W W₂`` and ``c = m·W b₂``; for an affine
    MLP ``W (I + m·W₂ W₁)`` and ``m·W (W₂ b₁ + b₂)``.

    Raises:
        ValueError: something follows the MLP's last linear, so that it is not part of the projection.
    """
    parts, m, wide = _parts(mlp), _multiplier(mlp), w.float()
    if parts.last_activation is not None or parts.last_norm is not None:
        raise ValueError("only an MLP that ends in a bare linear composes with the projection; run it without composed")
    g = m * (wide @ parts.last.weight.float())
    c = m * (wide @ parts.last.bias.float())
    if parts.activation is not None:
        return Composed(w, g.to(w.dtype), c.to(w.dtype))
    folded = wide + g @ parts.first.weight.float()
    return Composed(folded.to(w.dtype), None, (c + g @ parts.first.bias.float()).to(w.dtype))


def _projected(x: Tensor, parts: _Parts, m: float, w: Tensor) -> Tensor:
    h = _hidden(x, parts)
    last = parts.last
    if parts.last_activation is None and parts.last_norm is None:
        y = torch.addmm(x, h, last.weight.T, alpha=m)
        return F.linear(y, w, F.linear(last.bias if m == 1 else m * last.bias, w))
    o = _norm(_activate(F.linear(h, last.weight, last.bias), parts.last_activation), parts.last_norm)
    if parts.last_norm is not None:
        o = o.add_(x) if m == 1 else o.mul_(m).add_(x)  # neither autograd nor LayerNorm's gradient needs its output
        return F.linear(o, w)
    return F.linear(torch.add(x, o, alpha=m), w)


def _inferred(x: Tensor, parts: _Parts, composed: Composed) -> Tensor:
    projected = F.linear(x, composed.w, composed.c)
    return projected if composed.g is None else projected.addmm_(_hidden(x, parts), composed.g.T)


def _hidden(x: Tensor, parts: _Parts) -> Tensor:
    return _norm(_activate(F.linear(x, parts.first.weight, parts.first.bias), parts.activation), parts.norm)


def _activate(h: Tensor, module: nn.Module | None) -> Tensor:
    if module is None:
        return h
    recording = torch.is_grad_enabled() and h.requires_grad
    if type(module) in _IN_PLACE and (not recording or type(module) in _IN_PLACE_IN_TRAINING):
        return _IN_PLACE[type(module)](h)
    return module(h)


def _norm(h: Tensor, norm: nn.LayerNorm | None) -> Tensor:
    return h if norm is None else norm(h)


def _multiplier(mlp: reference.MLP) -> float:
    return 1.0 if mlp.training else mlp.multiplier


def _parts(mlp: reference.MLP) -> _Parts:
    modules = list(mlp.linear)
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    if len(linears) != 2 or any(isinstance(module, nn.Dropout) for module in modules):
        raise ValueError(f"the MLP must have two linears and no dropout, not {mlp.linear}")
    first, last = linears
    at = modules.index(last)
    return _Parts(first, *_kinds(modules[1:at]), last, *_kinds(modules[at + 1 :]))


def _kinds(modules: list[nn.Module]) -> tuple[nn.Module | None, nn.LayerNorm | None]:
    norm = next((module for module in modules if isinstance(module, nn.LayerNorm)), None)
    return next((module for module in modules if module is not norm), None), norm
