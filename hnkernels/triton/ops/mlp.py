"""Residual MLPs as operators, and with gradients: forward, backward, and inside the projection at inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hnkernels.triton import mlps, mlps_backward
from hnkernels.triton.allocation import reinterpret
from hnkernels.triton.kernels import hidden_and_projection as one_launch
from hnkernels.triton.kernels import linear as linear_kernel
from hnkernels.triton.kernels.arguments import Streams, acc_dtype
from hnkernels.triton.kernels.weight_gradient import WeightGradients
from hnkernels.triton.mlps import Layer
from hnkernels.triton.ops.registry import once, operator, per_stream, with_rows
from hnkernels.triton.program import Program, signature
from hnkernels.triton.target import target_of

_STRUCTURE = "str act, bool[] activated, bool[] norms, float[] dropouts"


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


def _layers(act: str, activated: Sequence[bool], norms: Sequence[bool], dropouts: Sequence[float]) -> list[Layer]:
    return [
        Layer(act if is_activated else "linear", norm, dropout)
        for is_activated, norm, dropout in zip(activated, norms, dropouts, strict=True)
    ]


def _parameters(layers: list[Layer], flat: Sequence[Tensor], streams: int) -> list[mlps.Parameters]:
    count = len(flat) // streams
    flat = [p.contiguous() for p in flat]
    return mlps.unflatten(layers, [flat[s * count : (s + 1) * count] for s in range(streams)])


def _planned(
    act: str,
    activated: Sequence[bool],
    norms: Sequence[bool],
    dropouts: Sequence[float],
    flat: Sequence[Tensor],
    streams: int,
    rows: int,
    vectors: bool = False,
) -> tuple[list[Layer], list[mlps.Parameters]]:
    """The layers and their parameters; ``vectors`` says that those of folded LayerNorms are there, at inference."""
    layers = _layers(act, activated, norms, dropouts)
    parameters = _parameters(layers, flat, streams)
    return layers if vectors else mlps.trained(layers, parameters, rows), parameters


@operator(
    "mlp_forward",
    f"(Tensor[] x, Tensor[] residual, Tensor[] parameters, Tensor[] vectors, Tensor? seed, Tensor? query_w,"
    f" Tensor? query_b, {_STRUCTURE}, float[] multipliers, Tensor? strength, ScalarType out_dtype, bool save)"
    " -> Tensor[]",
)
def mlp_forward(
    x, residual, parameters, vectors, seed, query_w, query_b, act, activated, norms, dropouts, multipliers, strength,
    out_dtype, save,
):  # fmt: skip
    """y per stream, the query's product if there is one, and what backward wants. One x serves both streams."""
    streams = len(multipliers)
    x = per_stream(with_rows(x), streams)
    layers, unflat = _planned(act, activated, norms, dropouts, parameters, streams, x[0].shape[0], bool(vectors))
    result = mlps.forward(
        x, layers, unflat, tuple(multipliers), out_dtype=out_dtype, save=save,
        residual=per_stream(with_rows(residual), streams) if residual else x, seed=seed, vectors=vectors or None,
        query=None if query_w is None else (query_w.contiguous(), query_b), strength=strength,
    )  # fmt: skip
    return [*result.y, *([] if result.query is None else [result.query]), *mlps.flatten_saved(result.saved)]


@mlp_forward.shapes
def _(
    x, residual, parameters, vectors, seed, query_w, query_b, act, activated, norms, dropouts, multipliers, strength,
    out_dtype, save,
):  # fmt: skip
    streams, rows = len(multipliers), x[0].shape[0]
    layers, unflat = _planned(act, activated, norms, dropouts, parameters, streams, rows, bool(vectors))
    outs = [x[0].new_empty(x[0].shape, dtype=out_dtype) for _ in range(streams)]
    if query_w is not None:
        outs.append(x[0].new_empty(rows, query_w.shape[0]))
    if save:
        acc = acc_dtype(x[0].dtype)
        widths = [p.w[0].shape[0] for p in unflat]
        for i, width in enumerate(widths):
            if mlps.keeps_pre(layers, i):
                outs.append(x[0].new_empty(streams, rows, width))
            if mlps.waits_for_product(layers, i):
                shapes = ((streams, rows, 2), (streams, widths[i + 1]), (streams, widths[i + 1]))
                outs += [x[0].new_empty(shape, dtype=acc) for shape in shapes]
    return outs


@operator(
    "mlp_backward",
    f"(Tensor[] dy, Tensor? dq, Tensor[] x, Tensor[] parameters, Tensor[] saved, Tensor? seed, Tensor? query_w,"
    f" {_STRUCTURE}, float[] multipliers, Tensor? strength, ScalarType x_dtype, bool needs_x, bool needs_parameters,"
    " bool needs_query)"
    " -> Tensor[]",
)
def mlp_backward(
    dy, dq, x, parameters, saved, seed, query_w, act, activated, norms, dropouts, multipliers, strength, x_dtype,
    needs_x, needs_parameters, needs_query,
):  # fmt: skip
    """The gradients that are needed: of every x, of weights and vectors (flat), of the query.

    If ``saved`` is empty, activations are recomputed.
    """
    streams, shared = len(multipliers), len(x) == 1 and len(multipliers) > 1
    x = per_stream(with_rows(x), streams)
    layers, unflat = _planned(act, activated, norms, dropouts, parameters, streams, x[0].shape[0])
    kept = mlps.unflatten_saved(layers, saved) if saved else mlps.saved_again(x, layers, unflat, seed)
    result = mlps_backward.backward(
        tuple(t.contiguous() for t in dy), x, layers, unflat, tuple(multipliers), kept, shared=shared,
        needs_x=needs_x, needs_parameters=needs_parameters, x_dtype=x_dtype, seed=seed,
        query=None if dq is None or query_w is None else (dq.contiguous(), query_w.contiguous()),
        needs_query=needs_query, strength=strength,
    )  # fmt: skip
    return [t for t in (*result.x, result.weights, result.vectors, result.query) if t is not None]


@mlp_backward.shapes
def _(
    dy, dq, x, parameters, saved, seed, query_w, act, activated, norms, dropouts, multipliers, strength, x_dtype,
    needs_x, needs_parameters, needs_query,
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
    if needs_query:
        outs.append(x[0].new_empty(WeightGradients.layout([[query_w.shape]])[1]))
    return outs


@operator(
    "mlp_project",
    f"(Tensor[] x, Tensor[] parameters, Tensor? query_w, Tensor? query_b, {_STRUCTURE},"
    " Tensor[] w, Tensor[] g, Tensor[] c) -> Tensor[]",
)
def mlp_project(x, parameters, query_w, query_b, act, activated, norms, dropouts, w, g, c):
    """The projections of the MLPs' output at inference: the hidden layers, then ``x wᵀ + h gᵀ + c``."""
    streams = len(w)
    layers = _layers(act, activated, norms, dropouts)
    x = per_stream(with_rows(x), streams)
    return project(
        x, layers, _parameters(layers, parameters, streams), tuple(t.contiguous() for t in w), tuple(g), tuple(c),
        query=None if query_w is None else (query_w.contiguous(), query_b),
    )  # fmt: skip


@mlp_project.shapes
def _(x, parameters, query_w, query_b, act, activated, norms, dropouts, w, g, c):
    querys = [] if query_w is None else [query_w]
    return [x[0].new_empty(x[0].shape[0], t.shape[0]) for t in (*w, *querys)]


def project(
    x: Streams,
    layers: Sequence[Layer],
    parameters: Sequence[mlps.Parameters],
    w: Streams,
    g: Streams,
    c: Streams,
    query: tuple[Tensor, Tensor | None] | None = None,
) -> list[Tensor]:
    """``x wᵀ + h gᵀ + c`` per stream, h what the hidden layers make of x, and the query's product if there is one."""
    (layer, *more), (p, *_) = layers, parameters
    if not (more or layer.norm or layer.dropout or layer.act == "prelu"):
        (M, K), H = x[0].shape, p.w[0].shape[0]
        widths = [t.shape[0] for t in (*w, *([] if query is None else query[:1]))]
        tiles = one_launch.choose(M, K, H, widths, layer.act, x[0].dtype, target_of(x[0].device))
        if tiles is not None:
            return one_launch.hidden_and_projection(x, p.w, p.b, layer.act, w, g, c, tiles=tiles, query=query)
    state, _ = mlps.hidden_layers(x, layers, parameters, save=False, query=query)
    projected = linear_kernel.linear(x, w, c, z=state.stacked, g=g)
    return [*projected, *([] if state.query is None else [state.query])]


class _MLPs(torch.autograd.Function):
    """``y = x + m·f(x)`` per stream. Tensors: x (one, or one per stream), then the parameters, stream by stream."""

    @staticmethod
    def forward(
        ctx, structure, multipliers, out_dtype, recompute, count, strength, seed, query_w, query_b, *tensors
    ):  # fmt: skip
        x, parameters = tensors[:count], tensors[count:]
        compute = parameters[0].dtype
        same = x[0].dtype == compute
        inputs = x if same else tuple([t.to(compute) for t in x])
        residual = () if same else x
        save = not recompute and any(ctx.needs_input_grad)
        args = (
            inputs, residual, parameters, (), seed, query_w, query_b, *structure, multipliers, strength, out_dtype, save
        )  # fmt: skip
        if torch.compiler.is_compiling():
            results, ctx.program = mlp_forward(*args), None
        else:
            given = [*inputs, *residual, *parameters, *[t for t in (seed, query_w, query_b, strength) if t is not None]]
            key = (
                structure, multipliers, out_dtype, save, count, same, seed is None, query_w is None, query_b is None,
                strength is None, *signature(given),
            )  # fmt: skip
            results, ctx.program = mlp_forward.planned(key, given, *args)
        outs = len(multipliers) + (query_w is not None)
        ctx.save_for_backward(*inputs, *parameters, seed, query_w, strength, *results[outs:])
        ctx.structure, ctx.multipliers = structure, multipliers
        ctx.count, ctx.parameter_count, ctx.x_dtype = count, len(parameters), x[0].dtype
        ctx.has_query_bias = query_b is not None
        return tuple(results[:outs])

    @staticmethod
    def backward(ctx, *dy):
        structure, multipliers, program = ctx.structure, ctx.multipliers, ctx.program
        tensors = ctx.saved_tensors
        count, end, streams = ctx.count, ctx.count + ctx.parameter_count, len(multipliers)
        x, parameters, (seed, query_w, strength), saved = (
            tensors[:count], tensors[count:end], tensors[end : end + 3], tensors[end + 3 :]
        )  # fmt: skip
        needed = ctx.needs_input_grad
        first = len(needed) - end
        needs_x, needs_parameters = any(needed[first : first + count]), any(needed[first + count :])
        needs_query = needed[first - 2] or needed[first - 1]
        dq = dy[streams] if query_w is not None else None
        args = (
            dy[:streams], dq, x, parameters, saved, seed, query_w, *structure, multipliers, strength, ctx.x_dtype,
            needs_x, needs_parameters, needs_query,
        )  # fmt: skip
        if program is None:
            results = list(mlp_backward(*args))
        else:  # the program of the forward pass says all but what has come since
            key = (program, needs_x, needs_parameters, needs_query, *signature(dy))
            others = [t for t in (seed, query_w, strength) if t is not None]
            results = list(mlp_backward.planned(key, [*dy, *x, *parameters, *saved, *others], *args)[0])
        dx: list[Tensor | None] = [None] * count
        if needs_x:
            dx, results = results[:count], results[count:]
        d_parameters: Sequence[Tensor | None] = [None] * ctx.parameter_count
        if needs_parameters:
            count, d_parameters = _parameter_gradients(program, structure, parameters, streams, results)
            results = results[count:]
        d_query_w = d_query_b = None
        if needs_query:
            (flat,), (n, k) = results, query_w.shape
            d_query_w = flat[: n * k].view(n, k)
            at = WeightGradients.layout([[(n, k)]])[0][0][1]
            d_query_b = flat[at : at + n] if ctx.has_query_bias else None
        gradients = once((d_query_w, d_query_b, *dx, *d_parameters), *dy, *x, *parameters, query_w)
        return (*(None,) * (first - 2), *gradients)


def _parameter_gradients(
    program: Program | None, structure: Structure, parameters: Sequence[Tensor], streams: int, flat: Sequence[Tensor]
) -> tuple[int, Sequence[Tensor]]:
    """How many of the flat gradients are the parameters', and these, cut."""
    if program is not None:
        cuts = program.known.get("cuts")
        if cuts is None:
            cuts = program.known["cuts"] = Cuts(structure, parameters, streams)
        return cuts.count, cuts.of(flat[: cuts.count])
    layers, per_stream = structure.layers(), len(parameters) // streams
    unflat = mlps.unflatten(layers, [parameters[s * per_stream : (s + 1) * per_stream] for s in range(streams)])
    vectors = flat[1] if mlps_backward.gradient_sizes(layers, unflat)[1] else None
    cut = mlps_backward.parameter_gradients(layers, unflat, flat[0], vectors)
    return 1 + (vectors is not None), [gradient for stream in cut for gradient in stream]


class Cuts:
    """How the flat gradients of weights and vectors are cut into those of the parameters."""

    def __init__(self, structure: Structure, parameters: Sequence[Tensor], streams: int):
        layers, per_stream = structure.layers(), len(parameters) // streams
        unflat = mlps.unflatten(layers, [parameters[s * per_stream : (s + 1) * per_stream] for s in range(streams)])
        sizes = mlps_backward.gradient_sizes(layers, unflat)
        flat = [torch.empty(size, device="meta") for size in sizes]
        views = mlps_backward.parameter_gradients(layers, unflat, flat[0], flat[1] if sizes[1] else None)
        self.count = 1 + (sizes[1] > 0)
        of = {t.untyped_storage()._cdata: number for number, t in enumerate(flat)}
        self._views = [
            (of[view.untyped_storage()._cdata], view.shape, view.stride(), int(view.storage_offset()))
            for stream in views
            for view in stream
        ]

    def of(self, flat: Sequence[Tensor]) -> list[Tensor]:
        """The gradients, in the order of the parameters. Nobody writes into the flat ones any more."""
        return [reinterpret(flat[number], size, stride, at) for number, size, stride, at in self._views]


def run_mlps(
    x: Sequence[Tensor],
    parameters: Sequence[Tensor],
    structure: Structure,
    multipliers: tuple[float, ...],
    *,
    out_dtype: torch.dtype,
    strength: Tensor | None = None,
    seed: Tensor | None = None,
    query: tuple[Tensor, Tensor | None] | None = None,
    recompute: bool = False,
) -> tuple[Tensor, ...]:
    """``y = x + m·f(x)`` with gradients. Shape: x [M, d], one for all streams or one each → y [M, d] per stream.

    The parameters, in the compute dtype, are those of the first stream and then of the second. With a query, ``to_q``'s
    (weight, bias), its product with x comes last. ``recompute`` keeps x alone for backward; ``strength`` [streams] is
    another factor on the multipliers, without a gradient.
    """
    query_w, query_b = query or (None, None)
    return _MLPs.apply(
        structure, multipliers, out_dtype, recompute, len(x), strength, seed, query_w, query_b, *x, *parameters
    )  # fmt: skip
