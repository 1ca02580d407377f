"""The operators with their gradients: thin autograd functions over ``ops.py``.

A second derivative raises, rather than being silently wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hnkernels.triton import mlps, mlps_backward
from hnkernels.triton import ops as _ops  # noqa: F401  # registers torch.ops.hnkernels
from hnkernels.triton.kernels.weight_gradient import WeightGradients
from hnkernels.triton.mlps import Layer

_NO_SECOND = (
    "the Triton backend has no second derivatives; use backend='portable' where a gradient is to be differentiated "
    "again"
)


class Structure(NamedTuple):
    """What an MLP is made of, as plain values that the operators and PyTorch's compiler accept."""

    act: str
    activated: tuple[bool, ...]
    norms: tuple[bool, ...]
    dropouts: tuple[float, ...]

    def layers(self) -> list[Layer]:
        """Layer by layer."""
        rows = zip(self.activated, self.norms, self.dropouts, strict=True)
        return [Layer(self.act if activated else "linear", norm, p) for activated, norm, p in rows]


class _Once(torch.autograd.Function):
    """Passes gradients through and refuses to be differentiated. Inputs: the gradients, then what they depend on."""

    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(None if t is None else t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(_NO_SECOND)


def once(gradients: Sequence[Tensor | None], *depends_on: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients, which a second derivative is refused of. They depend on these tensors."""
    if not torch.is_grad_enabled():
        return tuple(gradients)
    return _Once.apply(len(gradients), *gradients, *depends_on)


class _MLPs(torch.autograd.Function):
    """``y = x + m·f(x)`` per stream. Tensors: x (one, or one per stream), then the parameters, stream by stream."""

    @staticmethod
    def forward(
        ctx, act, activated, norms, dropouts, multipliers, out_dtype, recompute, count, strength, seed, rider_w,
        rider_b, *tensors
    ):  # fmt: skip
        x, parameters = tensors[:count], tensors[count:]
        compute = parameters[0].dtype
        inputs = [t.to(compute) for t in x]
        save = not recompute and any(ctx.needs_input_grad)
        results = torch.ops.hnkernels.mlp_forward(
            inputs, x if x[0].dtype != compute else [], parameters, [], seed, rider_w, rider_b, act, activated, norms,
            dropouts, multipliers, strength, out_dtype, save,
        )  # fmt: skip
        outs = len(multipliers) + (rider_w is not None)
        saved = results[outs:]
        ctx.save_for_backward(*inputs, *parameters, seed, rider_w, strength, *saved)
        ctx.structure = (act, activated, norms, dropouts, multipliers)
        ctx.count, ctx.parameter_count, ctx.x_dtype = count, len(parameters), x[0].dtype
        ctx.has_rider_bias = rider_b is not None
        return tuple(results[:outs])

    @staticmethod
    def backward(ctx, *dy):
        act, activated, norms, dropouts, multipliers = ctx.structure
        tensors = ctx.saved_tensors
        count, end, streams = ctx.count, ctx.count + ctx.parameter_count, len(multipliers)
        x, parameters, (seed, rider_w, strength), saved = (
            tensors[:count], tensors[count:end], tensors[end : end + 3], tensors[end + 3 :]
        )  # fmt: skip
        first = 12  # of the tensors among the arguments of forward
        needs_rider, needs_rider_b = ctx.needs_input_grad[first - 2], ctx.needs_input_grad[first - 1]
        needs_x = any(ctx.needs_input_grad[first : first + count])
        needs_parameters = any(ctx.needs_input_grad[first + count :])
        dq = dy[streams] if rider_w is not None else None
        results = list(
            torch.ops.hnkernels.mlp_backward(
                dy[:streams], dq, x, parameters, saved, seed, rider_w, act, activated, norms, dropouts, multipliers,
                strength, ctx.x_dtype, needs_x, needs_parameters, needs_rider or needs_rider_b,
            )
        )  # fmt: skip
        dx: list[Tensor | None] = [results.pop(0) for _ in x] if needs_x else [None] * count
        d_parameters: list[Tensor | None] = [None] * ctx.parameter_count
        if needs_parameters:
            layers = Structure(act, activated, norms, dropouts).layers()
            per_stream = len(parameters) // streams
            unflat = mlps.unflatten(layers, [parameters[s * per_stream : (s + 1) * per_stream] for s in range(streams)])
            weights = results.pop(0)
            vectors = results.pop(0) if mlps_backward.gradient_sizes(layers, unflat)[1] else None
            cut = mlps_backward.parameter_gradients(layers, unflat, weights, vectors)
            d_parameters = [gradient for stream in cut for gradient in stream]
        d_rider_w = d_rider_b = None
        if needs_rider or needs_rider_b:
            flat, (n, k) = results.pop(0), rider_w.shape
            d_rider_w = flat[: n * k].view(n, k)
            at = WeightGradients.layout([[(n, k)]])[0][0][1]
            d_rider_b = flat[at : at + n] if ctx.has_rider_bias else None
        gradients = once((d_rider_w, d_rider_b, *dx, *d_parameters), *dy, *x, *parameters, rider_w)
        return (*(None,) * 10, *gradients)


def run_mlps(
    x: Sequence[Tensor],
    parameters: Sequence[Tensor],
    structure: Structure,
    multipliers: tuple[float, ...],
    *,
    out_dtype: torch.dtype,
    strength: Tensor | None = None,
    seed: Tensor | None = None,
    rider: tuple[Tensor, Tensor | None] | None = None,
    recompute: bool = False,
) -> tuple[Tensor, ...]:
    """``y = x + m·f(x)`` with gradients. Shape: x [M, d], one for all streams or one each → y [M, d] per stream.

    The parameters, in the compute dtype, are those of the first stream and then of the second. With a rider, ``to_q``'s
    (weight, bias), its product with x comes last. ``recompute`` keeps x alone for backward; ``strength`` [streams] is
    another factor on the multipliers, without a gradient.
    """
    rider_w, rider_b = rider or (None, None)
    return _MLPs.apply(
        *structure, multipliers, out_dtype, recompute, len(x), strength, seed, rider_w, rider_b, *x, *parameters
    )  # fmt: skip


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
        return tuple(torch.ops.hnkernels.linear(x, w, b, False))

    @staticmethod
    def backward(ctx, *dy):
        streams, count = ctx.streams, ctx.count
        saved = ctx.saved_tensors
        w, x = saved[:streams], saved[streams:]
        dx = [None] * count
        if any(ctx.needs_input_grad[2 : 2 + count]):
            dx = torch.ops.hnkernels.linear(dy, w, [], True)
            if count < streams:
                dx = [dx[0] + dx[1]]
        dw: list[Tensor | None] = [None] * streams
        db: list[Tensor | None] = [None] * ctx.biases
        if ctx.trained:
            flat = torch.ops.hnkernels.linear_weight_gradient(dy, x, ctx.biases > 0)
            starts = WeightGradients.layout([[t.shape for t in w]], ctx.biases > 0)[0][0]
            dw = [flat[at : at + t.numel()].view(t.shape) for at, t in zip(starts, w, strict=False)]
            if ctx.biases:
                db = [flat[at : at + t.shape[0]] for at, t in zip(starts[streams:], w, strict=True)]
        return (None, None, *once((*dx, *dw, *db), *dy, *w, *x))


def run_linear(x: Sequence[Tensor], w: Sequence[Tensor], b: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
    """``x wᵀ + b`` with gradients. Shape: x [M, d], one for all or one each, w [n, d], b [n] each or none → [M, n]."""
    return _Linear.apply(len(w), len(x), *x, *w, *b)


class _Grouped(torch.autograd.Function):
    """Many projections of a context rewritten for K and for V. Tensors: x_k, x_v, weights, biases (all or none)."""

    @staticmethod
    def forward(ctx, streams, *tensors):
        x, w, b = tensors[:2], tensors[2 : 2 + len(streams)], tensors[2 + len(streams) :]
        ctx.save_for_backward(*w)
        ctx.streams, ctx.biases = streams, len(b)
        flat = torch.ops.hnkernels.grouped_linear(x, w, list(b) or [None] * len(w), streams)
        rows = x[0].shape[0]
        parts = flat.split([rows * t.shape[0] for t in w])
        return tuple(part.view(rows, t.shape[0]) for part, t in zip(parts, w, strict=True))

    @staticmethod
    def backward(ctx, *dy):
        w = ctx.saved_tensors
        dx = torch.ops.hnkernels.grouped_linear_backward(dy, w, ctx.streams)
        return (None, *once((*dx, *(None,) * (len(w) + ctx.biases)), *dy, *w))


def run_grouped_linear(
    x: tuple[Tensor, Tensor], w: Sequence[Tensor], b: Sequence[Tensor], streams: Sequence[int]
) -> tuple[Tensor, ...]:
    """``x[streams[g]] w_gᵀ + b_g`` for frozen projections g, in one launch; gradients for x.

    Shape: x [M, d] for K and for V, w_g [n_g, d], b_g [n_g] all or none → [M, n_g].
    """
    return _Grouped.apply(tuple(streams), *x, *w, *b)
