"""Linears with low-rank weights of their own for every sample, with gradients: what the front end calls.

A slice is one such linear: q, k and v of one x, or k and v of many layers over one context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hnkernels.triton.kernels import lowrank_add as add_kernel
from hnkernels.triton.kernels import lowrank_linear as linear_kernel
from hnkernels.triton.kernels.arguments import acc_dtype
from hnkernels.triton.kernels.lowrank_arguments import POINTERS, LowRank
from hnkernels.triton.kernels.lowrank_factor_gradient import lowrank_factor_gradients, lowrank_sums
from hnkernels.triton.kernels.lowrank_input_gradient import lowrank_input_gradient
from hnkernels.triton.kernels.lowrank_shrink import lowrank_shrink
from hnkernels.triton.ops.linear import gradient_pieces, linear_weight_gradient
from hnkernels.triton.ops.registry import aligned, contiguous, once, operator, with_rows


def _lowrank(x, a, b, scale, index):
    """The factors of every slice with the samples."""
    tabled = len(a) > POINTERS
    arrange = aligned if tabled else contiguous
    x = with_rows([x])[0]
    if tabled and x.data_ptr() % 16:
        x = x.clone(memory_format=torch.contiguous_format)
    sets, (samples, tokens, d) = a[0].shape[0], x.shape
    if index is None and scale is None and 0 < sets < samples and x.stride(0) == tokens * x.stride(1):
        x = x.view(sets, samples // sets * tokens, d)  # nothing tells the samples of a set apart
    scale = None if scale is None else with_rows([scale])[0]
    return LowRank(x, arrange(a), arrange(b), scale, None if index is None else index.contiguous())


def _sampled(outs: list[Tensor], x: Tensor) -> list[Tensor]:
    """[S, T, n] for every slice; a flat result stays as it is."""
    return [t if t.ndim == 1 else t.view(*x.shape[:2], t.shape[2]) for t in outs]


@operator(
    "lowrank_linear",
    "(Tensor x, Tensor[] w, Tensor?[] biases, Tensor[] a, Tensor[] b, Tensor? scale, Tensor? index) -> Tensor[]",
    planned=lambda x, *rest: len(rest[-3]) <= POINTERS,
)
def _linear(x, w, biases, a, b, scale, index):
    """``x wᵀ + bias + scale·(x aᵀ) bᵀ`` for every slice, [S, T, n] each; of many slices flat, one after another."""
    slices = _lowrank(x, a, b, scale, index)
    w = aligned(w) if slices.tabled else contiguous(w)
    biases = [None if t is None else t.contiguous() for t in biases]
    return _sampled(linear_kernel.lowrank_linear(slices, w, biases), x)


@_linear.shapes
def _(x, w, biases, a, b, scale, index):
    return _lowrank_outputs(x, b)


@operator(
    "lowrank_add",
    "(Tensor x, Tensor[] bases, Tensor[] a, Tensor[] b, Tensor? scale, Tensor? index) -> Tensor[]",
    planned=lambda x, *rest: len(rest[-3]) <= POINTERS,
)
def _add(x, bases, a, b, scale, index):
    """``base + scale·(x aᵀ) bᵀ`` for every slice, like ``lowrank_linear``'s."""
    slices = _lowrank(x, a, b, scale, index)
    bases = aligned(bases) if slices.tabled else contiguous(bases)
    return _sampled(add_kernel.lowrank_add(slices, bases), x)


@_add.shapes
def _(x, bases, a, b, scale, index):
    return _lowrank_outputs(x, b)


def _lowrank_outputs(x: Tensor, b: Sequence[Tensor]) -> list[Tensor]:
    widths = [t.shape[1] for t in b]
    if len(b) > POINTERS:
        return [x.new_empty(x.shape[0] * x.shape[1] * sum(widths))]
    return [x.new_empty(*x.shape[:2], n) for n in widths]


@operator(
    "lowrank_backward",
    "(Tensor[] dy, Tensor x, Tensor[] w, Tensor[] a, Tensor[] b, Tensor? scale, Tensor? index, bool needs_x,"
    " bool needs_factors, bool needs_scale) -> Tensor[]",
    planned=lambda dy, *_: len(dy) <= POINTERS,
)
def _backward(dy, x, w, a, b, scale, index, needs_x, needs_factors, needs_scale):
    """The gradients that are needed: dx, without the linears' part if there is no w; da [G, r, d] and db [G, n, r] of
    every slice, flat; dscale [slices, S]."""
    slices = _lowrank(x, a, b, scale, index)
    arrange = aligned if slices.tabled else contiguous
    dy, w = arrange(dy), arrange(w)
    below = needs_factors or needs_scale
    table = slices.table(dy, w)
    g, u = lowrank_shrink(slices, table, dy, with_u=below, scale_gradient=needs_scale)
    outs = [lowrank_input_gradient(slices, table, dy, w, g).view(x.shape)] if needs_x else []
    if u is not None:
        parts = lowrank_factor_gradients(slices, table, dy, g, u, factors=needs_factors, scale=needs_scale)
        outs += [t for t in lowrank_sums(slices, table, *parts) if t is not None]
    return outs


@_backward.shapes
def _(dy, x, w, a, b, scale, index, needs_x, needs_factors, needs_scale):
    outs = [x.new_empty(x.shape)] if needs_x else []
    if needs_factors:
        outs.append(x.new_empty(sum(t.numel() for t in (*a, *b))))
    if needs_scale:
        outs.append(scale.new_empty(scale.shape))
    return outs


def lowrank_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    index: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """``y_p[s] = x[s] W_pᵀ + bias_p + scale_p[s]·(x[s] A_p[i]ᵀ) B_p[i]ᵀ`` for every slice p, i = index[s], in a launch.

    Differentiable once in everything but the index; nothing is computed for what takes no gradient. x, the factors and
    the scales are kept for it. All but the scales are of one dtype.

    Args:
        x: [S, T, d].
        weights: [n_p, d] each.
        biases: [n_p] each, or ``None``.
        a, b: [G, r_p, d] and [G, n_p, r_p] each, r_p at most 64.
        scales: [S] each, in any floating dtype, or ``None`` for 1. A sample of scale 0 costs its plain linear.
        index: [S] int64. Without it S is a multiple of G, and every set serves as many consecutive samples.

    Returns:
        [S, T, n_p] for every slice.
    """
    return _LowRankLinears.apply(len(weights), index, _stacked(scales, x), x, *weights, *biases, *a, *b)


def linears_runner(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    index: Tensor | None,
) -> Callable[[Tensor], Sequence[Tensor]] | None:
    """The program of ``lowrank_linears`` for these arguments, to be given x alone; ``None`` if it has none."""
    return _linear.runner(x, list(weights), list(biases), list(a), list(b), _stacked(scales, x), index)


def lowrank_add(
    bases: Sequence[Tensor],
    x: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    index: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """``y_p[s] = base_p[s] + scale_p[s]·(x[s] A_p[i]ᵀ) B_p[i]ᵀ``: ``lowrank_linears`` after linears of any kind.

    Shape: bases [S, T, n_p], which stay as they are; the others, and the results, as in ``lowrank_linears``.
    """
    return _LowRankAdd.apply(len(bases), index, _stacked(scales, x), x, *bases, *a, *b)


def _stacked(scales: Sequence[Tensor | None], x: Tensor) -> Tensor | None:
    """[slices, S] in what products are added up in; nothing is copied where all slices share theirs."""
    first, dtype = scales[0], acc_dtype(x.dtype)
    if all(s is None for s in scales):
        return None
    if first is not None and all(s is first for s in scales):
        return first.to(dtype).expand(len(scales), -1)
    ones = x.new_ones(x.shape[0], dtype=dtype)
    return torch.stack([ones if s is None else s.to(dtype) for s in scales])


class _LowRankLinears(torch.autograd.Function):
    """Tensors: the weights, the biases or None, a, b, slice by slice each."""

    @staticmethod
    def forward(ctx, count, index, scale, x, *tensors):
        w, biases, a, b = (tensors[i * count : (i + 1) * count] for i in range(4))
        ctx.save_for_backward(index, scale, x, *w, *a, *b)
        ctx.count = count
        results = _linear(x, w, biases, a, b, scale, index)
        return _slices(results, x, b)

    @staticmethod
    def backward(ctx, *dy):
        count = ctx.count
        index, scale, x, *tensors = ctx.saved_tensors
        w, a, b = (tensors[i * count : (i + 1) * count] for i in range(3))
        needs = ctx.needs_input_grad
        needs_w, needs_bias = needs[4 : 4 + count], needs[4 + count : 4 + 2 * count]
        dscale, dx, da, db = _gradients(dy, x, w, a, b, scale, index, needs[2], needs[3], any(needs[4 + 2 * count :]))
        dw: list[Tensor | None] = [None] * count
        d_bias: list[Tensor | None] = [None] * count
        if any(needs_w):
            dw, d_bias = _weight_gradients(dy, x, w, any(needs_bias))
        elif any(needs_bias):
            d_bias = [t.sum((0, 1)) for t in dy]
        d_bias = [t if needed else None for t, needed in zip(d_bias, needs_bias, strict=True)]
        return (None, None, *once((dscale, dx, *dw, *d_bias, *da, *db), *dy, scale, x, *w, *a, *b))


class _LowRankAdd(torch.autograd.Function):
    """Tensors: the bases, a, b, slice by slice each."""

    @staticmethod
    def forward(ctx, count, index, scale, x, *tensors):
        bases, a, b = (tensors[i * count : (i + 1) * count] for i in range(3))
        ctx.save_for_backward(index, scale, x, *a, *b)
        ctx.count = count
        results = _add(x, bases, a, b, scale, index)
        return _slices(results, x, b)

    @staticmethod
    def backward(ctx, *dy):
        count = ctx.count
        index, scale, x, *tensors = ctx.saved_tensors
        a, b = tensors[:count], tensors[count:]
        needs = ctx.needs_input_grad
        dscale, dx, da, db = _gradients(dy, x, [], a, b, scale, index, needs[2], needs[3], any(needs[4 + count :]))
        return (None, None, *once((dscale, dx, *dy, *da, *db), *dy, scale, x, *a, *b))


def _slices(results: Sequence[Tensor], x: Tensor, b: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """[S, T, n_p] for every slice; those of many come in one tensor."""
    if len(results) == len(b):
        return tuple(results)
    samples, tokens, _ = x.shape
    parts = results[0].split([samples * tokens * t.shape[1] for t in b])
    return tuple(part.view(samples, tokens, t.shape[1]) for part, t in zip(parts, b, strict=True))


def _gradients(dy, x, w, a, b, scale, index, needs_scale, needs_x, needs_factors):
    """dscale, dx, and lists of da and db, each None where it is not needed."""
    dscale = dx = None
    da: list[Tensor | None] = [None] * len(a)
    db: list[Tensor | None] = [None] * len(b)
    if needs_scale or needs_x or needs_factors:
        results = list(
            _backward(
                dy, x, w, a, b, scale, index, needs_x, needs_factors, needs_scale
            )
        )  # fmt: skip
        dx = results.pop(0) if needs_x else None
        if needs_factors:
            parts = results.pop(0).split([t.numel() for pair in zip(a, b, strict=True) for t in pair])
            da = [part.view(t.shape) for part, t in zip(parts[::2], a, strict=True)]
            db = [part.view(t.shape) for part, t in zip(parts[1::2], b, strict=True)]
        dscale = results.pop(0) if needs_scale else None
    return dscale, dx, da, db


def _weight_gradients(dy, x, w, biases):
    """dw [n_p, d] and Σ dy [n_p] of every slice; the kernel takes two of them at a time."""
    rows = x.reshape(-1, x.shape[-1])
    dw: list[Tensor | None] = []
    d_bias: list[Tensor | None] = []
    for first in range(0, len(w), 2):
        pair = w[first : first + 2]
        upstream = [t.reshape(-1, t.shape[-1]) for t in dy[first : first + 2]]
        pieces, sums = gradient_pieces(linear_weight_gradient(upstream, [rows], biases), pair, biases)
        dw += pieces
        d_bias += sums if biases else [None] * len(pair)
    return dw, d_bias
