"""Residual MLPs, for K and V side by side, forward and backward: which kernels run in which order, what is kept.

Forward, per layer: one launch of ``mlp_layer_forward_kernel``. A LayerNorm between two layers is folded into the second
one's launch; only where no product follows (the last layer), active dropout stands between, or a training step has few
rows or the vendor's library multiplies (``trained``), a row kernel runs.

Kept for backward: x, every layer's pre-activations, and a LayerNorm's row statistics. Where the activation of an
activation is itself (relu), its output serves as well and nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from hnkernels.triton.kernels.arguments import Dropout, Streams
from hnkernels.triton.kernels.layer_forward import NormIn, layer_forward
from hnkernels.triton.kernels.layer_output_forward import layer_output_forward
from hnkernels.triton.kernels.norm_vectors import norm_vectors
from hnkernels.triton.route import norm_alone
from hnkernels.triton.target import target_of

_IDEMPOTENT = ("linear", "relu", "relu6", "hardtanh")  # act(act(a)) = act(a), and act' at both is the same
_SCALE_FREE = ("linear", "relu")  # so even after a multiplication by dropout's 0 or 1/(1-p)


@dataclass(frozen=True)
class Layer:
    """What follows one linear.

    Attributes:
        act: the activation's device name.
        norm: whether a LayerNorm.
        dropout: its probability.
        alone: whether the LayerNorm has a launch of its own, also where a product follows.
    """

    act: str
    norm: bool
    dropout: float
    alone: bool = False


class Parameters(NamedTuple):
    """The parameters of one layer, each for K and V (or one stream alone)."""

    w: Streams
    b: Streams
    alpha: Streams | None
    gamma: Streams | None
    beta: Streams | None


def parameters_per_layer(layer: Layer) -> int:
    """How many tensors a layer has per stream: weight, bias, prelu's slope, γ and β."""
    return 2 + (layer.act == "prelu") + 2 * layer.norm


def unflatten(layers: Sequence[Layer], flat: Sequence[Sequence[Tensor]]) -> list[Parameters]:
    """The flat parameter lists of the MLPs, layer by layer."""
    pairs = list(zip(*flat, strict=True))
    parameters, at = [], 0
    for layer in layers:
        w, b = pairs[at], pairs[at + 1]
        at += 2
        alpha = gamma = beta = None
        if layer.act == "prelu":
            alpha = pairs[at]
            at += 1
        if layer.norm:
            gamma, beta = pairs[at], pairs[at + 1]
            at += 2
        parameters.append(Parameters(w, b, alpha, gamma, beta))
    return parameters


class Hidden(NamedTuple):
    """What stands between two layers: the activations (stacked too), and a LayerNorm for the next product to finish."""

    h: Streams
    stacked: Tensor | None
    moments: Tensor | None
    width: int
    gamma: Streams | None  # of that LayerNorm, where the activations do not have it in them yet
    query: Tensor | None
    norms: int  # LayerNorms up to here that a product finishes


class Saved(NamedTuple):
    """What backward wants of one layer.

    ``pre`` [streams, M, N] are the pre-activations, without W β + b where a LayerNorm is in front of the layer. If the
    next layer's product finishes this layer's LayerNorm, there are its rows' ``stats`` (μ, 1/σ) [streams, M, 2], and
    that product's W γ and W β + b, [streams, width] each.
    """

    pre: Tensor | None = None
    stats: Tensor | None = None
    wg: Tensor | None = None
    wb: Tensor | None = None


def flatten_saved(saved: Sequence[Saved]) -> list[Tensor]:
    """As a list of tensors."""
    return [t for layer in saved for t in layer if t is not None]


def unflatten_saved(layers: Sequence[Layer], tensors: Sequence[Tensor]) -> list[Saved]:
    """The reverse of ``flatten_saved``."""
    rest, saved = iter(tensors), []
    for i in range(len(layers)):
        pre = next(rest) if keeps_pre(layers, i) else None
        normed = (next(rest), next(rest), next(rest)) if waits_for_product(layers, i) else (None, None, None)
        saved.append(Saved(pre, *normed))
    return saved


def trained(layers: Sequence[Layer], parameters: Sequence[Parameters], rows: int) -> list[Layer]:
    """The layers of a training step, with the LayerNorms alone that are not worth folding into the next product.

    Folded, a LayerNorm has that product's weight [N, K] read twice more in every step: W γ and W β are made of it, and
    dγ and dβ. Alone, it goes through the activations [rows, K] four times more, in one launch more; that is less where
    rows are few, and where the vendor's library, which cannot fold anything, multiplies so much faster.
    """
    target, dtype = target_of(parameters[0].w[0].device), parameters[0].w[0].dtype
    planned = []
    for layer, p, above in zip(layers, parameters, (*parameters[1:], None), strict=True):
        alone = False
        if layer.norm and above is not None:
            width, (n, k) = above.w[0].shape[0], p.w[0].shape
            alone = 4 * rows < width or norm_alone(rows, n, k, width, dtype, target)
        planned.append(replace(layer, alone=alone))
    return planned


def keeps_pre(layers: Sequence[Layer], index: int) -> bool:
    """Whether backward wants the layer's pre-activations: not those of a bare last linear."""
    return index < len(layers) - 1 or layers[index].norm or layers[index].act != "linear"


class Forward(NamedTuple):
    """The result of ``forward``: y per stream, to_q's product, and what backward wants."""

    y: Streams
    query: Tensor | None
    saved: list[Saved]


def forward(
    x: Streams,
    layers: Sequence[Layer],
    parameters: Sequence[Parameters],
    multiplier: tuple[float, ...],
    *,
    out_dtype: torch.dtype,
    save: bool,
    residual: Streams | None = None,
    seed: Tensor | None = None,
    query: tuple[Tensor, Tensor | None] | None = None,
    vectors: Sequence[Tensor] | None = None,
    strength: Tensor | None = None,
) -> Forward:
    """``y = x + m·f(x)``. Shape: x [M, d] per stream, in the compute dtype → y [M, d] in ``out_dtype``.

    ``residual`` is x in its own dtype, where that is another one than the compute dtype; ``strength`` [streams] fp32 is
    another factor on m.
    """
    residual = residual or x
    state, saved = hidden_layers(x, layers[:-1], parameters[:-1], save=save, seed=seed, query=query, vectors=vectors)
    layer, p, last = layers[-1], parameters[-1], len(layers) - 1
    norm_in = _norm_in(state, parameters, last, vectors)
    dropout = dropout_of(layer, seed, last)
    first_query = query if last == 0 else None
    if layer.norm:
        step = layer_forward(
            state.h, p.w, p.b, "linear", out=False, pre=True, norm_in=norm_in, query=first_query, stats=save
        )
        assert step.pre is not None
        assert p.gamma is not None
        assert p.beta is not None
        y, _ = layer_output_forward(
            step.pre, layer.act, gamma=p.gamma, beta=p.beta, out_dtype=out_dtype, alpha=p.alpha, dropout=dropout,
            residual=residual, multiplier=multiplier, strength=strength,
            wb=None if norm_in is None else norm_in.wb,
        )  # fmt: skip
    else:
        step = layer_forward(
            state.h, p.w, p.b, layer.act, out_dtype=out_dtype, pre=save and layer.act != "linear", alpha=p.alpha,
            norm_in=norm_in, dropout=dropout, residual=residual, multiplier=multiplier, strength=strength,
            query=first_query, stats=save,
        )  # fmt: skip
        assert step.out is not None
        y = step.out
    if save:
        _enter_stats(saved, step.stats, norm_in)
        saved.append(Saved(step.pre))
    return Forward(y, step.query if last == 0 else state.query, saved)


def hidden_layers(
    x: Streams,
    layers: Sequence[Layer],
    parameters: Sequence[Parameters],
    *,
    save: bool,
    seed: Tensor | None = None,
    query: tuple[Tensor, Tensor | None] | None = None,
    vectors: Sequence[Tensor] | None = None,
) -> tuple[Hidden, list[Saved]]:
    """All layers but the last one. Shape: x [M, d] → h [M, width] per stream, and what is saved."""
    state = Hidden(x, None, None, 1, None, None, 0)
    saved: list[Saved] = []
    for i, (layer, p) in enumerate(zip(layers, parameters, strict=True)):
        dropout = dropout_of(layer, seed, i)
        norm_in = _norm_in(state, parameters, i, vectors)
        apart = layer.norm and (dropout is not None or layer.alone)
        # Behind a LayerNorm the pre-activations are kept without their constant part, so that the output cannot serve.
        serves = output_serves(layer) and norm_in is None
        later = save and serves  # the output is kept, so γ waits for the next launch
        step = layer_forward(
            state.h, p.w, p.b, "linear" if apart else layer.act, out=not apart,
            pre=apart or (save and not serves), alpha=None if apart else p.alpha, norm_in=norm_in,
            moments=layer.norm and not apart, gamma=None if apart or later else p.gamma,
            dropout=None if apart else dropout, query=query if i == 0 else None, stats=save,
        )  # fmt: skip
        h, stacked = step.out, step.stacked
        if apart:
            assert step.pre is not None
            assert p.gamma is not None
            assert p.beta is not None
            h, _ = layer_output_forward(
                step.pre, layer.act, gamma=p.gamma, beta=p.beta, out_dtype=step.pre.dtype, alpha=p.alpha,
                dropout=dropout,
                wb=None if norm_in is None else norm_in.wb,
            )  # fmt: skip
        assert h is not None
        if save:
            _enter_stats(saved, step.stats, norm_in)
            saved.append(Saved(step.pre if step.pre is not None else step.stacked))
        norms = state.norms + (step.moments is not None)
        state = Hidden(
            h,
            stacked,
            step.moments,
            step.width,
            p.gamma if later else None,
            step.query if i == 0 else state.query,
            norms,
        )
    return state, saved


def _enter_stats(saved: list[Saved], stats: Tensor | None, norm_in: NormIn | None) -> None:
    """Into the entry of the layer whose LayerNorm this layer's product has finished."""
    if norm_in is not None:
        saved[-1] = saved[-1]._replace(stats=stats, wg=norm_in.wg, wb=norm_in.wb)


def saved_again(
    x: Streams, layers: Sequence[Layer], parameters: Sequence[Parameters], seed: Tensor | None
) -> list[Saved]:
    """What ``forward`` saves, computed again from x."""
    state, saved = hidden_layers(x, layers[:-1], parameters[:-1], save=True, seed=seed)
    last = len(layers) - 1
    pre = None
    if keeps_pre(layers, last):
        p, norm_in = parameters[last], _norm_in(state, parameters, last, None)
        step = layer_forward(state.h, p.w, p.b, "linear", out=False, pre=True, norm_in=norm_in, stats=True)
        _enter_stats(saved, step.stats, norm_in)
        pre = step.pre
    return [*saved, Saved(pre)]


def output_serves(layer: Layer) -> bool:
    """Whether backward can do with the activated output (before a LayerNorm) in place of the pre-activations."""
    if layer.dropout > 0:
        return not layer.norm and layer.act in _SCALE_FREE
    return layer.act in _IDEMPOTENT


def dropout_of(layer: Layer, seed: Tensor | None, index: int) -> Dropout | None:
    if layer.dropout == 0:
        return None
    assert seed is not None
    return Dropout(layer.dropout, seed, 2 * index)


def waits_for_product(layers: Sequence[Layer], index: int) -> bool:
    """Whether the LayerNorm of this layer is finished by the next layer's product."""
    layer = layers[index]
    return layer.norm and layer.dropout == 0 and not layer.alone and index < len(layers) - 1


def all_norm_vectors(layers: Sequence[Layer], parameters: Sequence[Parameters]) -> list[Tensor]:
    """For every LayerNorm that a product finishes, W γ and W β + b of that product: once is enough at inference."""
    vectors: list[Tensor] = []
    for i in range(len(layers) - 1):
        if waits_for_product(layers, i):
            vectors += _vectors_after(parameters, i)
    return vectors


def _vectors_after(parameters: Sequence[Parameters], index: int) -> tuple[Tensor, Tensor]:
    before, p = parameters[index], parameters[index + 1]
    assert before.gamma is not None
    assert before.beta is not None
    return norm_vectors(p.w, p.b, before.gamma, before.beta)


def _norm_in(
    state: Hidden, parameters: Sequence[Parameters], index: int, vectors: Sequence[Tensor] | None
) -> NormIn | None:
    """The LayerNorm of the layer before ``index`` that its product has to finish."""
    if state.moments is None:
        return None
    at = 2 * (state.norms - 1)
    wg, wb = _vectors_after(parameters, index - 1) if vectors is None else vectors[at : at + 2]
    return NormIn(state.moments, state.width, wg, wb, state.gamma)
