"""K and V's projections as an operator, and with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hnkernels.triton.kernels import linear as linear_kernel
from hnkernels.triton.kernels.weight_gradient import WeightGradients
from hnkernels.triton.ops.registry import once, operator, per_stream, with_rows


@operator("linear", "(Tensor[] x, Tensor[] w, Tensor[] b, bool transposed) -> Tensor[]")
def linear(x, w, b, transposed):
    """``x wᵀ + b`` per stream, or ``x w``."""
    x = per_stream(with_rows(x), len(w))
    return list(linear_kernel.linear(x, tuple(t.contiguous() for t in w), tuple(b) or None, transposed=transposed))


@linear.shapes
def _(x, w, b, transposed):
    return [x[0].new_empty(x[0].shape[0], t.shape[1 if transposed else 0]) for t in w]


@operator("linear_weight_gradient", "(Tensor[] dy, Tensor[] x, bool biases) -> Tensor")
def linear_weight_gradient(dy, x, biases):
    """``dyᵀ x`` and ``Σ dy`` per stream, flat."""
    x = per_stream(with_rows(x), len(dy))
    shapes = [(d.shape[1], t.shape[1]) for d, t in zip(dy, x, strict=True)]
    gradients = WeightGradients([shapes], x[0].shape[0], dy[0].dtype, dy[0].device, biases)
    gradients.add(0, tuple(d.contiguous() for d in dy), x)
    return gradients.total()


@linear_weight_gradient.shapes
def _(dy, x, biases):
    shapes = [(d.shape[1], x[0].shape[1]) for d in dy]
    return dy[0].new_empty(WeightGradients.layout([shapes], biases)[1])


def gradient_pieces(flat: Tensor, w: Sequence[Tensor], biases: bool) -> tuple[list[Tensor], list[Tensor]]:
    """dw and db (none without biases) of what ``linear_weight_gradient`` returns for these weights."""
    (starts,), _ = WeightGradients.layout([[(t.shape[0], t.shape[1]) for t in w]], biases)
    dw = [flat[at : at + t.numel()].view(t.shape) for at, t in zip(starts[: len(w)], w, strict=True)]
    db = [flat[at : at + t.shape[0]] for at, t in zip(starts[len(w) :], w, strict=True)] if biases else []
    return dw, db


class _Linear(torch.autograd.Function):
    """``x wᵀ + b`` per stream. Tensors: x (one, or one per stream), the weights, then the biases (all or none)."""

    @staticmethod
    def forward(ctx, streams, count, *tensors):
        x, w, b = tensors[:count], tensors[count : count + streams], tensors[count + streams :]
        first_w = 2 + count
        ctx.trained = any(ctx.needs_input_grad[first_w:])
        # A frozen projection needs its weight only.
        ctx.save_for_backward(*w, *(x if ctx.trained else ()))
        ctx.streams, ctx.count, ctx.biases, ctx.width = streams, count, len(b), x[0].shape[1]
        return tuple(linear(x, w, b, False))

    @staticmethod
    def backward(ctx, *dy):
        streams, count = ctx.streams, ctx.count
        saved = ctx.saved_tensors
        w, x = saved[:streams], saved[streams:]
        dx = [None] * count
        if any(ctx.needs_input_grad[2 : 2 + count]):
            dx = linear(dy, w, [], True)
            if count < streams:
                dx = [dx[0] + dx[1]]
        of_weights: list[Tensor | None] = [None] * (streams + ctx.biases)
        if ctx.trained:
            dw, db = gradient_pieces(linear_weight_gradient(dy, x, ctx.biases > 0), w, ctx.biases > 0)
            of_weights = [*dw, *db]
        return (None, None, *once((*dx, *of_weights), *dy, *w, *x))


def run_linear(x: Sequence[Tensor], w: Sequence[Tensor], b: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
    """``x wᵀ + b`` with gradients. Shape: x [M, d], one for all or one each, w [n, d], b [n] each or none → [M, n]."""
    return _Linear.apply(len(w), len(x), *x, *w, *b)
