"""The projections of many layers over one context as an operator, and with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hnkernels.triton.kernels import grouped as kernels
from hnkernels.triton.ops.registry import aligned, once, operator, per_stream, with_rows


@operator("grouped_linear", "(Tensor[] x, Tensor[] w, Tensor?[] b, int[] streams) -> Tensor", planned=lambda *_: False)
def grouped_linear(x, w, b, streams):
    """``x[streams[g]] w_gᵀ + b_g`` for every g, [M, N_g] each, one behind the other."""
    x, w = per_stream(with_rows(x), 2), aligned(w)
    out = x[0].new_empty(x[0].shape[0] * sum(t.shape[0] for t in w))
    kernels.grouped_linear(x, kernels.groups(w, b, streams, x[0].shape[0]), out)
    return out


@grouped_linear.shapes
def _(x, w, b, streams):
    return x[0].new_empty(x[0].shape[0] * sum(t.shape[0] for t in w))


@operator("grouped_linear_backward", "(Tensor[] dy, Tensor[] w, int[] streams) -> Tensor[]", planned=lambda *_: False)
def grouped_linear_backward(dy, w, streams):
    """``Σ dy_g w_g`` over the projections of the K stream, and of the V stream."""
    gathered = kernels.groups(aligned(w), [None] * len(w), streams, dy[0].shape[0])
    return list(kernels.grouped_input_gradient(aligned(dy), gathered))


@grouped_linear_backward.shapes
def _(dy, w, streams):
    return [dy[0].new_empty(dy[0].shape[0], w[0].shape[1]) for _ in range(2)]


class _Grouped(torch.autograd.Function):
    """Many projections of a context rewritten for K and for V. Tensors: x_k, x_v, weights, biases (all or none)."""

    @staticmethod
    def forward(ctx, streams, *tensors):
        x, w, b = tensors[:2], tensors[2 : 2 + len(streams)], tensors[2 + len(streams) :]
        ctx.save_for_backward(*w)
        ctx.streams, ctx.biases = streams, len(b)
        flat = grouped_linear(x, w, list(b) or [None] * len(w), streams)
        rows = x[0].shape[0]
        parts = flat.split([rows * t.shape[0] for t in w])
        return tuple(part.view(rows, t.shape[0]) for part, t in zip(parts, w, strict=True))

    @staticmethod
    def backward(ctx, *dy):
        w = ctx.saved_tensors
        dx = grouped_linear_backward(dy, w, ctx.streams)
        return (None, *once((*dx, *(None,) * (len(w) + ctx.biases)), *dy, *w))


def run_grouped_linear(
    x: tuple[Tensor, Tensor], w: Sequence[Tensor], b: Sequence[Tensor], streams: Sequence[int]
) -> tuple[Tensor, ...]:
    """``x[streams[g]] w_gᵀ + b_g`` for frozen projections g, in one launch; gradients for x.

    Shape: x [M, d] for K and for V, w_g [n_g, d], b_g [n_g] all or none → [M, n_g].
    """
    return _Grouped.apply(tuple(streams), *x, *w, *b)
