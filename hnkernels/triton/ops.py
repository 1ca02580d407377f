"""The kernels as operators of PyTorch, so that its compiler, fake tensors and checkpointing know them.

An operator takes lists with one tensor per stream (K, V; or a single one) and the MLP's structure as plain numbers. It
knows nothing of autograd: ``functions.py`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hnkernels.triton import mlps, mlps_backward
from hnkernels.triton.kernels.arguments import acc_dtype
from hnkernels.triton.kernels.grouped import grouped_input_gradient, grouped_linear, groups
from hnkernels.triton.kernels.linear import linear
from hnkernels.triton.kernels.lowrank_add import lowrank_add
from hnkernels.triton.kernels.lowrank_arguments import POINTERS, LowRank
from hnkernels.triton.kernels.lowrank_factor_gradient import lowrank_factor_gradients, lowrank_sums
from hnkernels.triton.kernels.lowrank_input_gradient import lowrank_input_gradient
from hnkernels.triton.kernels.lowrank_linear import lowrank_linear
from hnkernels.triton.kernels.lowrank_shrink import lowrank_shrink
from hnkernels.triton.kernels.weight_gradient import WeightGradients
from hnkernels.triton.mlps import Layer

_STRUCTURE = "str act, bool[] activated, bool[] norms, float[] dropouts"

_library = torch.library.Library("hnkernels", "DEF")


def _layers(act: str, activated: Sequence[bool], norms: Sequence[bool], dropouts: Sequence[float]) -> list[Layer]:
    return [
        Layer(act if is_activated else "linear", norm, dropout)
        for is_activated, norm, dropout in zip(activated, norms, dropouts, strict=True)
    ]


def _parameters(layers: list[Layer], flat: Sequence[Tensor], streams: int) -> list[mlps.Parameters]:
    count = len(flat) // streams
    flat = [p.contiguous() for p in flat]
    return mlps.unflatten(layers, [flat[s * count : (s + 1) * count] for s in range(streams)])


def _rows(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors with contiguous rows, the same one only once."""
    unique: dict[int, Tensor] = {}
    for t in tensors:
        if id(t) not in unique:
            unique[id(t)] = t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()
    return tuple(unique[id(t)] for t in tensors)


def _aligned(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, contiguous, and beginning where the grouped kernels may read 16 bytes at a time."""
    tensors = [t.contiguous() for t in tensors]
    return [t if t.data_ptr() % 16 == 0 else t.clone() for t in tensors]


def _both(tensors: Sequence[Tensor], streams: int) -> tuple[Tensor, ...]:
    """One tensor per stream: a single one serves them all."""
    return (*tensors,) * (streams if len(tensors) == 1 else 1)


def _define(name: str, schema: str):
    """Registers the decorated function as the operator's kernel on every device."""
    _library.define(f"{name}{schema}")

    def register(kernel: Callable[..., Any]) -> Callable[..., Any]:
        torch.library.impl(f"hnkernels::{name}", "default", func=kernel, lib=_library)
        return kernel

    return register


def _shapes(name: str, kernel: Callable[..., Any]):
    """Registers the decorated function as what the operator returns for fake tensors.

    On tensors of the meta device the kernel itself runs, and allocates and counts without launching.
    """

    def register(rule: Callable[..., Any]) -> None:
        @torch.library.register_fake(f"hnkernels::{name}", lib=_library)
        def _(*args):
            first = next(t[0] for t in args if isinstance(t, (list, tuple)) and t and isinstance(t[0], Tensor))
            return rule(*args) if isinstance(first, FakeTensor) else kernel(*args)

    return register


@_define(
    "mlp_forward",
    f"(Tensor[] x, Tensor[] residual, Tensor[] parameters, Tensor[] vectors, Tensor? seed, Tensor? rider_w,"
    f" Tensor? rider_b, {_STRUCTURE}, float[] multipliers, Tensor? strength, ScalarType out_dtype, bool save)"
    " -> Tensor[]",
)
def _mlp_forward(
    x, residual, parameters, vectors, seed, rider_w, rider_b, act, activated, norms, dropouts, multipliers, strength,
    out_dtype, save,
):  # fmt: skip
    """y per stream, the rider's product if there is one, and what backward wants. One x serves both streams."""
    streams = len(multipliers)
    layers = _layers(act, activated, norms, dropouts)
    x = _both(_rows(x), streams)
    result = mlps.forward(
        x, layers, _parameters(layers, parameters, streams), tuple(multipliers), out_dtype=out_dtype, save=save,
        residual=_both(_rows(residual), streams) if residual else x, seed=seed, vectors=vectors or None,
        rider=None if rider_w is None else (rider_w.contiguous(), rider_b), strength=strength,
    )  # fmt: skip
    return [*result.y, *([] if result.rider is None else [result.rider]), *mlps.flatten_saved(result.saved)]


@_shapes("mlp_forward", _mlp_forward)
def _(
    x, residual, parameters, vectors, seed, rider_w, rider_b, act, activated, norms, dropouts, multipliers, strength,
    out_dtype, save,
):  # fmt: skip
    streams, rows = len(multipliers), x[0].shape[0]
    layers = _layers(act, activated, norms, dropouts)
    outs = [x[0].new_empty(x[0].shape, dtype=out_dtype) for _ in range(streams)]
    if rider_w is not None:
        outs.append(x[0].new_empty(rows, rider_w.shape[0]))
    if save:
        acc = acc_dtype(x[0].dtype)
        widths = [p.w[0].shape[0] for p in _parameters(layers, parameters, streams)]
        for i, width in enumerate(widths):
            if mlps.keeps_pre(layers, i):
                outs.append(x[0].new_empty(streams, rows, width))
            if mlps.waits_for_product(layers, i):
                shapes = ((streams, rows, 2), (streams, widths[i + 1]), (streams, widths[i + 1]))
                outs += [x[0].new_empty(shape, dtype=acc) for shape in shapes]
    return outs


@_define(
    "mlp_backward",
    f"(Tensor[] dy, Tensor? dq, Tensor[] x, Tensor[] parameters, Tensor[] saved, Tensor? seed, Tensor? rider_w,"
    f" {_STRUCTURE}, float[] multipliers, Tensor? strength, ScalarType x_dtype, bool needs_x, bool needs_parameters,"
    " bool needs_rider)"
    " -> Tensor[]",
)
def _mlp_backward(
    dy, dq, x, parameters, saved, seed, rider_w, act, activated, norms, dropouts, multipliers, strength, x_dtype,
    needs_x, needs_parameters, needs_rider,
):  # fmt: skip
    """The gradients that are needed: of every x, of weights and vectors (flat), of the rider. Nothing saved: anew."""
    streams, shared = len(multipliers), len(x) == 1 and len(multipliers) > 1
    layers = _layers(act, activated, norms, dropouts)
    unflat = _parameters(layers, parameters, streams)
    x = _both(_rows(x), streams)
    kept = mlps.unflatten_saved(layers, saved) if saved else mlps.saved_again(x, layers, unflat, seed)
    result = mlps_backward.backward(
        tuple(t.contiguous() for t in dy), x, layers, unflat, tuple(multipliers), kept, shared=shared,
        needs_x=needs_x, needs_parameters=needs_parameters, x_dtype=x_dtype, seed=seed,
        rider=None if dq is None or rider_w is None else (dq.contiguous(), rider_w.contiguous()),
        needs_rider=needs_rider, strength=strength,
    )  # fmt: skip
    return [t for t in (*result.x, result.weights, result.vectors, result.rider) if t is not None]


@_shapes("mlp_backward", _mlp_backward)
def _(
    dy, dq, x, parameters, saved, seed, rider_w, act, activated, norms, dropouts, multipliers, strength, x_dtype,
    needs_x, needs_parameters, needs_rider,
):  # fmt: skip
    streams = len(multipliers)
    layers = _layers(act, activated, norms, dropouts)
    unflat = _parameters(layers, parameters, streams)
    outs = [t.new_empty(t.shape, dtype=x_dtype) for t in x] if needs_x else []
    if needs_parameters:
        weights, vectors = mlps_backward.gradient_sizes(layers, unflat)
        outs.append(x[0].new_empty(weights))
        if vectors:
            dtype = mlps_backward.vector_dtype(unflat, acc_dtype(x[0].dtype))
            outs.append(x[0].new_empty(vectors, dtype=dtype))
    if needs_rider:
        outs.append(x[0].new_empty(WeightGradients.layout([[rider_w.shape]])[1]))
    return outs


@_define("linear", "(Tensor[] x, Tensor[] w, Tensor[] b, bool transposed) -> Tensor[]")
def _linear(x, w, b, transposed):
    """``x wᵀ + b`` per stream, or ``x w``."""
    x = _both(_rows(x), len(w))
    return list(linear(x, tuple(t.contiguous() for t in w), tuple(b) or None, transposed=transposed))


@_shapes("linear", _linear)
def _(x, w, b, transposed):
    return [x[0].new_empty(x[0].shape[0], t.shape[1 if transposed else 0]) for t in w]


@_define("linear_weight_gradient", "(Tensor[] dy, Tensor[] x, bool biases) -> Tensor")
def _linear_weight_gradient(dy, x, biases):
    """``dyᵀ x`` and ``Σ dy`` per stream, flat."""
    x = _both(_rows(x), len(dy))
    shapes = [(d.shape[1], t.shape[1]) for d, t in zip(dy, x, strict=True)]
    gradients = WeightGradients([shapes], x[0].shape[0], dy[0].dtype, dy[0].device, biases)
    gradients.add(0, tuple(d.contiguous() for d in dy), x)
    return gradients.total()


@_shapes("linear_weight_gradient", _linear_weight_gradient)
def _(dy, x, biases):
    shapes = [(d.shape[1], x[0].shape[1]) for d in dy]
    return dy[0].new_empty(WeightGradients.layout([shapes], biases)[1])


@_define(
    "mlp_project",
    f"(Tensor[] x, Tensor[] parameters, Tensor? rider_w, Tensor? rider_b, {_STRUCTURE},"
    " Tensor[] w, Tensor[] g, Tensor[] c) -> Tensor[]",
)
def _mlp_project(x, parameters, rider_w, rider_b, act, activated, norms, dropouts, w, g, c):
    """The projections of the MLPs' output at inference: the hidden layers, then ``x wᵀ + h gᵀ + c``."""
    streams = len(w)
    layers = _layers(act, activated, norms, dropouts)
    x = _both(_rows(x), streams)
    rider = None if rider_w is None else (rider_w.contiguous(), rider_b)
    state, _ = mlps.hidden_layers(x, layers, _parameters(layers, parameters, streams), save=False, rider=rider)
    projected = linear(x, tuple(t.contiguous() for t in w), tuple(c), z=state.stacked, g=tuple(g))
    return [*projected, *([] if state.rider is None else [state.rider])]


@_shapes("mlp_project", _mlp_project)
def _(x, parameters, rider_w, rider_b, act, activated, norms, dropouts, w, g, c):
    riders = [] if rider_w is None else [rider_w]
    return [x[0].new_empty(x[0].shape[0], t.shape[0]) for t in (*w, *riders)]


@_define("grouped_linear", "(Tensor[] x, Tensor[] w, Tensor?[] b, int[] streams) -> Tensor")
def _grouped_linear(x, w, b, streams):
    """``x[streams[g]] w_gᵀ + b_g`` for every g, [M, N_g] each, one behind the other."""
    x, w = _both(_rows(x), 2), _aligned(w)
    out = x[0].new_empty(x[0].shape[0] * sum(t.shape[0] for t in w))
    grouped_linear(x, groups(w, b, streams, x[0].shape[0]), out)
    return out


@_shapes("grouped_linear", _grouped_linear)
def _(x, w, b, streams):
    return x[0].new_empty(x[0].shape[0] * sum(t.shape[0] for t in w))


@_define("grouped_linear_backward", "(Tensor[] dy, Tensor[] w, int[] streams) -> Tensor[]")
def _grouped_linear_backward(dy, w, streams):
    """``Σ dy_g w_g`` over the projections of the K stream, and of the V stream."""
    gathered = groups(_aligned(w), [None] * len(w), streams, dy[0].shape[0])
    return list(grouped_input_gradient(_aligned(dy), gathered))


@_shapes("grouped_linear_backward", _grouped_linear_backward)
def _(dy, w, streams):
    return [dy[0].new_empty(dy[0].shape[0], w[0].shape[1]) for _ in range(2)]


def _lowrank(x, a, b, scale, index):
    """The factors of every slice with the samples."""
    tabled = len(a) > POINTERS
    arrange = _aligned if tabled else _contiguous
    x = _rows([x])[0]
    if tabled and x.data_ptr() % 16:
        x = x.clone(memory_format=torch.contiguous_format)
    sets, (samples, tokens, d) = a[0].shape[0], x.shape
    if index is None and scale is None and 0 < sets < samples and x.stride(0) == tokens * x.stride(1):
        x = x.view(sets, samples // sets * tokens, d)  # nothing tells the samples of a set apart
    scale = None if scale is None else _rows([scale])[0]
    return LowRank(x, arrange(a), arrange(b), scale, None if index is None else index.contiguous())


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.contiguous() for t in tensors]


def _sampled(outs: list[Tensor], x: Tensor) -> list[Tensor]:
    """[S, T, n] for every slice; a flat result stays as it is."""
    return [t if t.ndim == 1 else t.view(*x.shape[:2], t.shape[2]) for t in outs]


@_define(
    "lowrank_linear",
    "(Tensor x, Tensor[] w, Tensor?[] biases, Tensor[] a, Tensor[] b, Tensor? scale, Tensor? index) -> Tensor[]",
)
def _lowrank_linear(x, w, biases, a, b, scale, index):
    """``x wᵀ + bias + scale·(x aᵀ) bᵀ`` for every slice, [S, T, n] each; of many slices flat, one behind the other."""
    slices = _lowrank(x, a, b, scale, index)
    w = _aligned(w) if slices.tabled else _contiguous(w)
    biases = [None if t is None else t.contiguous() for t in biases]
    return _sampled(lowrank_linear(slices, w, biases), x)


@_shapes("lowrank_linear", _lowrank_linear)
def _(x, w, biases, a, b, scale, index):
    return _lowrank_outputs(x, b)


@_define(
    "lowrank_add",
    "(Tensor x, Tensor[] bases, Tensor[] a, Tensor[] b, Tensor? scale, Tensor? index) -> Tensor[]",
)
def _lowrank_add(x, bases, a, b, scale, index):
    """``base + scale·(x aᵀ) bᵀ`` for every slice, like ``lowrank_linear``'s."""
    slices = _lowrank(x, a, b, scale, index)
    bases = _aligned(bases) if slices.tabled else _contiguous(bases)
    return _sampled(lowrank_add(slices, bases), x)


@_shapes("lowrank_add", _lowrank_add)
def _(x, bases, a, b, scale, index):
    return _lowrank_outputs(x, b)


def _lowrank_outputs(x: Tensor, b: Sequence[Tensor]) -> list[Tensor]:
    widths = [t.shape[1] for t in b]
    if len(b) > POINTERS:
        return [x.new_empty(x.shape[0] * x.shape[1] * sum(widths))]
    return [x.new_empty(*x.shape[:2], n) for n in widths]


@_define(
    "lowrank_backward",
    "(Tensor[] dy, Tensor x, Tensor[] w, Tensor[] a, Tensor[] b, Tensor? scale, Tensor? index, bool needs_x,"
    " bool needs_factors, bool needs_scale) -> Tensor[]",
)
def _lowrank_backward(dy, x, w, a, b, scale, index, needs_x, needs_factors, needs_scale):
    """The gradients that are needed: dx, without the linears' part if there is no w; da [G, r, d] and db [G, n, r] of
    every slice, flat; dscale [slices, S]."""
    slices = _lowrank(x, a, b, scale, index)
    arrange = _aligned if slices.tabled else _contiguous
    dy, w = arrange(dy), arrange(w)
    below = needs_factors or needs_scale
    table = slices.table(dy, w)
    g, u = lowrank_shrink(slices, table, dy, with_u=below, scale_gradient=needs_scale)
    outs = [lowrank_input_gradient(slices, table, dy, w, g).view(x.shape)] if needs_x else []
    if u is not None:
        parts = lowrank_factor_gradients(slices, table, dy, g, u, factors=needs_factors, scale=needs_scale)
        outs += [t for t in lowrank_sums(slices, table, *parts) if t is not None]
    return outs


@_shapes("lowrank_backward", _lowrank_backward)
def _(dy, x, w, a, b, scale, index, needs_x, needs_factors, needs_scale):
    outs = [x.new_empty(x.shape)] if needs_x else []
    if needs_factors:
        outs.append(x.new_empty(sum(t.numel() for t in (*a, *b))))
    if needs_scale:
        outs.append(scale.new_empty(scale.shape))
    return outs
