"""Residual MLPs, for K and V side by side, forward and backward: which kernels run in which order, what is kept.

Forward, per layer: one launch of ``mlp_layer_forward_kernel``. A LayerNorm between two layers is folded into the second
one's launch; only where no product follows (the last layer), or active dropout stands between, a row kernel runs.

Kept for backward: x and every layer's pre-activations, no more. Where the activation of an activation is itself (relu),
its output serves as well and nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hnkernels.triton import launchers
from hnkernels.triton.launchers import Dropout, NormIn, Streams, WeightGradients

_IDEMPOTENT = ("linear", "relu", "relu6", "hardtanh")  # act(act(a)) = act(a), and act' at both is the same
_SCALE_FREE = ("linear", "relu")  # so even after a multiplication by dropout's 0 or 1/(1-p)


@dataclass(frozen=True)
class Layer:
    """What follows one linear: the activation's device name, whether a LayerNorm, and the probability of dropout."""

    act: str
    norm: bool
    dropout: float


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
    rider: Tensor | None
    norms: int  # LayerNorms up to here that a product finishes


class Forward(NamedTuple):
    """The result of ``forward``: y per stream, to_q's product, and what backward wants."""

    y: Streams
    rider: Tensor | None
    saved: list[Tensor]


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
    rider: tuple[Tensor, Tensor | None] | None = None,
    vectors: Sequence[Tensor] | None = None,
) -> Forward:
    """``y = x + m·f(x)``. Shape: x [M, d] per stream, in the compute dtype → y [M, d] in ``out_dtype``.

    ``residual`` is x in its own dtype, where that is another one than the compute dtype.
    """
    residual = residual or x
    state, saved = hidden_layers(x, layers[:-1], parameters[:-1], save=save, seed=seed, rider=rider, vectors=vectors)
    layer, p, last = layers[-1], parameters[-1], len(layers) - 1
    norm_in = _norm_in(state, parameters, last, vectors)
    dropout = _dropout(layer, seed, last)
    first_rider = rider if last == 0 else None
    if layer.norm:
        step = launchers.layer_forward(
            state.h, p.w, p.b, "linear", out=False, pre=True, norm_in=norm_in, rider=first_rider
        )
        assert step.pre is not None
        assert p.gamma is not None
        assert p.beta is not None
        y = launchers.norm_forward(
            step.pre, p.gamma, p.beta, layer.act, out_dtype=out_dtype, alpha=p.alpha, dropout=dropout,
            residual=residual, multiplier=multiplier,
        )  # fmt: skip
    else:
        step = launchers.layer_forward(
            state.h, p.w, p.b, layer.act, out_dtype=out_dtype, pre=save and layer.act != "linear", alpha=p.alpha,
            norm_in=norm_in, dropout=dropout, residual=residual, multiplier=multiplier, rider=first_rider,
        )  # fmt: skip
        assert step.out is not None
        y = step.out
    if save and step.pre is not None:
        saved.append(step.pre)
    return Forward(y, step.rider if last == 0 else state.rider, saved)


def hidden_layers(
    x: Streams,
    layers: Sequence[Layer],
    parameters: Sequence[Parameters],
    *,
    save: bool,
    seed: Tensor | None = None,
    rider: tuple[Tensor, Tensor | None] | None = None,
    vectors: Sequence[Tensor] | None = None,
) -> tuple[Hidden, list[Tensor]]:
    """All layers but the last one. Shape: x [M, d] → h [M, width] per stream, and the tensors saved."""
    state, saved = Hidden(x, None, None, 1, None, 0), []
    for i, (layer, p) in enumerate(zip(layers, parameters, strict=True)):
        dropout = _dropout(layer, seed, i)
        norm_in = _norm_in(state, parameters, i, vectors)
        apart = layer.norm and dropout is not None
        step = launchers.layer_forward(
            state.h, p.w, p.b, "linear" if apart else layer.act, out=not apart,
            pre=apart or (save and not _output_serves(layer)), alpha=None if apart else p.alpha, norm_in=norm_in,
            gamma=p.gamma if layer.norm and not apart else None, dropout=None if apart else dropout,
            rider=rider if i == 0 else None,
        )  # fmt: skip
        h, stacked = step.out, step.stacked
        if apart:
            assert step.pre is not None
            assert p.gamma is not None
            assert p.beta is not None
            h = launchers.norm_forward(
                step.pre, p.gamma, p.beta, layer.act, out_dtype=step.pre.dtype, alpha=p.alpha, dropout=dropout
            )
        assert h is not None
        if save:
            kept = step.pre if step.pre is not None else step.stacked
            assert kept is not None
            saved.append(kept)
        norms = state.norms + (step.moments is not None)
        state = Hidden(h, stacked, step.moments, step.width, step.rider if i == 0 else state.rider, norms)
    return state, saved


def saved_again(
    x: Streams, layers: Sequence[Layer], parameters: Sequence[Parameters], seed: Tensor | None
) -> list[Tensor]:
    """What ``forward`` saves, computed anew from x."""
    state, saved = hidden_layers(x, layers[:-1], parameters[:-1], save=True, seed=seed)
    if layers[-1].norm or layers[-1].act != "linear":
        p, last = parameters[-1], len(layers) - 1
        norm_in = _norm_in(state, parameters, last, None)
        step = launchers.layer_forward(state.h, p.w, p.b, "linear", out=False, pre=True, norm_in=norm_in)
        assert step.pre is not None
        saved.append(step.pre)
    return saved


class Gradients(NamedTuple):
    """The result of ``backward``.

    ``weights`` and ``vectors`` (γ, β and prelu's slopes) are flat; ``parameter_gradients`` cuts them up.
    """

    x: tuple[Tensor | None, ...]
    weights: Tensor | None
    vectors: Tensor | None
    rider: Tensor | None


def backward(
    dy: Streams,
    x: Streams,
    layers: Sequence[Layer],
    parameters: Sequence[Parameters],
    multiplier: tuple[float, ...],
    saved: Sequence[Tensor],
    *,
    shared: bool,
    needs_x: bool,
    needs_parameters: bool,
    x_dtype: torch.dtype,
    seed: Tensor | None = None,
    rider: tuple[Tensor, Tensor] | None = None,
    needs_rider: bool = False,
) -> Gradients:
    """The gradients of ``forward``. Shape: dy [M, d] per stream.

    ``rider`` is (dq [M, Q], w_q [Q, d]). With ``shared`` x is one tensor, and so is its gradient.
    """
    M, dtype, device = x[0].shape[0], x[0].dtype, x[0].device
    gradients = sums = None
    vector_offsets, vector_count = _vector_offsets(layers, parameters)
    if needs_parameters:
        gradients = WeightGradients([_sizes(p.w) for p in parameters], M, dtype, device)
        if vector_count:
            sums = torch.empty(
                launchers.row_programs(M), vector_count, device=device, dtype=launchers.acc_dtype(dtype)
            )  # fmt: skip

    def through_rows(index: int, dh: Streams, a: Tensor | None, m: tuple[float, ...], with_h: bool):
        """From the gradient of a layer's output to that of its pre-activations, by the row kernel."""
        layer, p = layers[index], parameters[index]
        return launchers.layer_output_backward(
            dh, a, layer.act, gamma=p.gamma, beta=p.beta, alpha=p.alpha, dropout=_dropout(layer, seed, index),
            multiplier=m, with_h=with_h, sums=sums, sums_at=vector_offsets[index][0],
            stream_of_sums=vector_offsets[index][1],
        )  # fmt: skip

    last = len(layers) - 1
    da, scale = dy, multiplier
    plain = layers[last] == Layer("linear", False, 0.0)
    if not plain or (last == 0 and any(m != 1 for m in multiplier)):
        # Without activation and norm the pre-activations were not kept, nor are they needed.
        a = saved[last] if len(saved) > last else None
        stacked, _ = through_rows(last, dy, a, multiplier, with_h=False)
        da, scale = tuple(stacked), (1.0, 1.0)
    for i in range(last, -1, -1):
        h = x
        below = da
        if i > 0 and (needs_x or needs_parameters):
            layer = layers[i - 1]
            a, fused = saved[i - 1], not (layer.norm or layer.act == "prelu")
            serves = _output_serves(layer)
            with_h = needs_parameters and not serves
            # What only dropout follows needs no pre-activations.
            in_kernel = a if fused and layer.act != "linear" else None
            stacked, h_stacked = launchers.hidden_gradient(
                da, parameters[i].w, act=layer.act, a=in_kernel, fused=fused, with_h=with_h and fused,
                dropout=_dropout(layer, seed, i - 1) if fused else None, scale=scale,
            )  # fmt: skip
            if not fused:
                stacked, h_stacked = through_rows(i - 1, tuple(stacked), a, (1.0, 1.0), with_h)
            below = tuple(stacked)
            h = tuple(a) if serves else () if h_stacked is None else tuple(h_stacked)
        if gradients is not None:
            gradients.add(i, da, h, scale)
        if i > 0:
            da, scale = below, (1.0, 1.0)

    dx: tuple[Tensor | None, ...] = (None,) * len(dy)
    if needs_x:
        dx = launchers.input_gradient(dy, da, parameters[0].w, shared=shared, out_dtype=x_dtype, rider=rider)[: len(dy)]
    vectors = None
    if sums is not None:
        vectors = torch.empty(vector_count, device=device, dtype=sums.dtype)
        if M:
            launchers.sum_rows(sums, vectors)
        else:
            vectors.zero_()
    d_rider = None
    if needs_rider:
        assert rider is not None
        one = WeightGradients([_sizes(rider[1:])], M, dtype, device)
        one.add(0, rider[:1], x[:1])
        d_rider = one.total()
    return Gradients(dx, gradients.total() if gradients is not None else None, vectors, d_rider)


def parameter_gradients(
    layers: Sequence[Layer], parameters: Sequence[Parameters], weights: Tensor, vectors: Tensor | None
) -> list[list[Tensor]]:
    """Views of the flat gradients, in the order of the flat parameter lists, for every stream."""
    streams = len(parameters[0].w)
    offsets = WeightGradients.layout([_sizes(p.w) for p in parameters])[0]
    vector_offsets, _ = _vector_offsets(layers, parameters)
    result: list[list[Tensor]] = [[] for _ in range(streams)]
    for layer, p, starts, (first, per_stream) in zip(layers, parameters, offsets, vector_offsets, strict=True):
        for s, gradients in enumerate(result):
            w, b = p.w[s], p.b[s]
            gradients.append(weights[starts[s] : starts[s] + w.numel()].view(w.shape))
            gradients.append(weights[starts[streams + s] :][: b.numel()])
            if vectors is None:
                continue
            at, n = first + s * per_stream, b.numel()
            if layer.act == "prelu":
                slope = at + 2 * n * layer.norm
                gradients.append(vectors[slope : slope + 1])
            if layer.norm:
                gradients += [vectors[at : at + n], vectors[at + n : at + 2 * n]]
    return result


def gradient_sizes(layers: Sequence[Layer], parameters: Sequence[Parameters]) -> tuple[int, int]:
    """Elements of the two flat gradients, ``weights`` and ``vectors``."""
    weights = WeightGradients.layout([_sizes(p.w) for p in parameters])[1]
    return weights, _vector_offsets(layers, parameters)[1]


def _vector_offsets(layers: Sequence[Layer], parameters: Sequence[Parameters]) -> tuple[list[tuple[int, int]], int]:
    """Where each layer's sums begin (γ, β, slope; stream by stream), how many a stream has, and how many there are."""
    offsets, end = [], 0
    for layer, p in zip(layers, parameters, strict=True):
        per_stream = 2 * p.b[0].shape[0] * layer.norm + (layer.act == "prelu")
        offsets.append((end, per_stream))
        end += len(p.w) * per_stream
    return offsets, end


def _sizes(weights: Streams) -> list[tuple[int, int]]:
    return [(w.shape[0], w.shape[1]) for w in weights]


def _output_serves(layer: Layer) -> bool:
    """Whether backward can do with the layer's output in place of its pre-activations."""
    return not layer.norm and layer.act in (_SCALE_FREE if layer.dropout > 0 else _IDEMPOTENT)


def _dropout(layer: Layer, seed: Tensor | None, index: int) -> Dropout | None:
    if layer.dropout == 0:
        return None
    assert seed is not None
    return Dropout(layer.dropout, seed, 2 * index)


def waits_for_product(layers: Sequence[Layer], index: int) -> bool:
    """Whether the LayerNorm of this layer is finished by the next layer's product."""
    return layers[index].norm and layers[index].dropout == 0 and index < len(layers) - 1


def norm_vectors(layers: Sequence[Layer], parameters: Sequence[Parameters]) -> list[Tensor]:
    """For every LayerNorm that a product finishes, W γ and W β + b of that product: once is enough at inference."""
    vectors: list[Tensor] = []
    for i in range(len(layers) - 1):
        if waits_for_product(layers, i):
            vectors += _vectors_behind(parameters, i)
    return vectors


def _vectors_behind(parameters: Sequence[Parameters], index: int) -> tuple[Tensor, Tensor]:
    before, p = parameters[index], parameters[index + 1]
    assert before.gamma is not None
    assert before.beta is not None
    return launchers.norm_vectors(p.w, p.b, before.gamma, before.beta)


def _norm_in(
    state: Hidden, parameters: Sequence[Parameters], index: int, vectors: Sequence[Tensor] | None
) -> NormIn | None:
    """The LayerNorm of the layer before ``index`` that its product has to finish."""
    if state.moments is None:
        return None
    at = 2 * (state.norms - 1)
    wg, wb = _vectors_behind(parameters, index - 1) if vectors is None else vectors[at : at + 2]
    return NormIn(state.moments, state.width, wg, wb)
