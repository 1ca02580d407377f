"""Which launches are compiled: the library's own, planned on the meta device in every form of MLP, for every target.

``all_calls`` are all of them; ``sample`` is a part that is small enough for the tests: every kernel on three targets,
some on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product as product_of

import torch
from torch import Tensor

from benchmarks.machine_code import Configuration, distinct
from benchmarks.shapes import PROMPT, WIDTHS
from hnkernels.network.activations import ACTIVATIONS
from hnkernels.triton import mlps, mlps_backward
from hnkernels.triton.kernels import hidden_and_projection as one_launch
from hnkernels.triton.kernels.grouped import grouped_input_gradient, grouped_linear, groups
from hnkernels.triton.kernels.linear import linear
from hnkernels.triton.kernels.lowrank_add import lowrank_add
from hnkernels.triton.kernels.lowrank_arguments import LowRank
from hnkernels.triton.kernels.lowrank_factor_gradient import lowrank_factor_gradients, lowrank_sums
from hnkernels.triton.kernels.lowrank_input_gradient import lowrank_input_gradient
from hnkernels.triton.kernels.lowrank_linear import lowrank_linear
from hnkernels.triton.kernels.lowrank_shrink import lowrank_shrink
from hnkernels.triton.kernels.weight_gradient import WeightGradients
from hnkernels.triton.launch import Call, capturing
from hnkernels.triton.mlps import Layer, Parameters
from hnkernels.triton.ops.mlp import project
from hnkernels.triton.target import TARGETS, Target, asked_route, forced_route, planned_for
from hnkernels.triton.tiling import PRODUCTS, candidates, forced

TOKENS = (16, PROMPT, 154, 616, 1024, 4096, 8192, 16384)
"""A few rows, a prompt, a batch of them, pictures from 256 to 1024 pixels."""


_EVEN_AND_UNEVEN = ((1280, 4096), (320, PROMPT))
"""A width that is a multiple of every block, and one that is not of the larger ones."""


@dataclass(frozen=True)
class Form:
    """One form of MLP pair and what is done with it.

    Attributes:
        name: what the report calls it.
        act: the activation's device name.
        norm: LayerNorm after every linear.
        dropout: active dropout after every layer but the last.
        activate_output: activation after the last linear too.
        depth: linears.
        training: forward that saves and backward; else inference with the last linear inside the projection.
        shared: K and V rewrite one context.
        query: ``to_q`` comes along.
        wide_residual: the context is fp32, as under autocast.
        trained_projection: the projections have gradients.
        strength: it comes as a tensor, as in a compiled model, where nothing is composed beforehand.
    """

    name: str
    act: str = "relu"
    norm: bool = False
    dropout: bool = False
    activate_output: bool = False
    depth: int = 2
    training: bool = True
    shared: bool = True
    query: bool = False
    wide_residual: bool = False
    trained_projection: bool = False
    strength: bool = False

    def layers(self) -> list[Layer]:
        """The structure, as the operators get it."""
        last = self.depth - 1
        return [
            Layer(
                self.act if i < last or self.activate_output else "linear",
                self.norm,
                0.1 if self.dropout and i < last else 0.0,
            )
            for i in range(self.depth)
        ]


FORMS = (
    Form("relu", query=True, trained_projection=True),
    Form("relu, two contexts", shared=False, wide_residual=True),
    Form("gelu", act="gelu", wide_residual=True),
    Form("gelu, activated output", act="gelu", activate_output=True),
    Form("relu, dropout", dropout=True),
    Form("gelu, dropout", act="gelu", dropout=True),
    Form("relu, LayerNorm", norm=True, query=True),
    Form("gelu, LayerNorm", act="gelu", norm=True, activate_output=True, wide_residual=True),
    Form("gelu, LayerNorm, three linears", act="gelu", norm=True, depth=3),
    Form("gelu, LayerNorm, dropout", act="gelu", norm=True, dropout=True, query=True),
    Form("prelu", act="prelu"),
    Form("prelu, LayerNorm", act="prelu", norm=True, activate_output=True),
    Form("one linear", depth=1),
    Form("one linear, LayerNorm", depth=1, norm=True, query=True),
    Form("relu, inference", training=False, query=True),
    Form("gelu, inference", act="gelu", training=False),
    Form("gelu, LayerNorm, inference", act="gelu", norm=True, training=False, query=True),
    Form("gelu, compiled inference", act="gelu", training=False, query=True, strength=True),
    Form("gelu, LayerNorm, compiled inference", act="gelu", norm=True, training=False, strength=True),
)


_ACTIVATIONS = sorted({row.device for row in ACTIVATIONS.values() if row.device not in (None, "prelu")})

_PRODUCTS = {
    "weight_gradient_kernel": "gradient",
    "hidden_gradient_kernel": "backward",
    "normed_gradient_kernel": "backward",
    "input_gradient_kernel": "backward",
    "grouped_input_gradient_kernel": "backward",
}
"""What the kernels of a backward pass multiply."""


SPLIT = tuple(form for form in FORMS if form.name in ("relu", "relu, two contexts", "gelu, inference"))
"""In which every kernel that can cut up its depth takes part, in all its forms."""

EVERY_KERNEL = ("sm_80", "sm_90", "gfx942")
"""The targets whose sample has every kernel."""

ELSEWHERE = ("mlp_layer_forward_kernel", "hidden_gradient_kernel", "weight_gradient_kernel", "lowrank_forward_kernel")
"""What the others' has."""

_WIDE, _NARROW = (640, 4096), (320, 16384)
"""Width and tokens; the narrow one's weight gradient has several parts on every target with every kernel."""

_OPTIONAL = ("z_ptr", "dq_ptr", "vectors_ptr", "g_ptr", "u_ptr")


def calls(form: Form, width: int, tokens: int, dtype: torch.dtype, target: Target) -> list[Call]:
    """The launches of one form on contexts [tokens, width], forward and, in training, backward."""
    with planned_for(target), capturing() as captured:
        _train(form, width, tokens, dtype) if form.training else _infer(form, width, tokens, dtype)
    return captured


def grouped_calls(width: int, tokens: int, dtype: torch.dtype, target: Target) -> list[Call]:
    """The projections of many layers over one context [tokens, width] in one launch, with and without bias."""
    weights = [_empty(n, width, dtype=dtype) for n in (320, 640, 1280) for _ in range(2)]
    biases = [None if i % 2 else _empty(w.shape[0], dtype=dtype) for i, w in enumerate(weights)]
    x = (_empty(tokens, width, dtype=dtype), _empty(tokens, width, dtype=dtype))
    with planned_for(target), capturing() as captured:
        gathered = groups(weights, biases, [i % 2 for i in range(len(weights))], tokens)
        grouped_linear(x, gathered, _empty(tokens * sum(gathered.widths), dtype=dtype))
        grouped_input_gradient([_empty(tokens, n, dtype=dtype) for n in gathered.widths], gathered)
    return captured


RANKS = (4, 16, 64)
"""Of generated factors: HyperDreamBooth's and Text-to-LoRA's are among the low ones."""

_QKV, _LAYERS = (1, 1, 1), (1, 1, 0.5, 0.5, 0.25)


def lowrank_calls(width: int, tokens: int, rank: int, dtype: torch.dtype, target: Target) -> list[Call]:
    """Linears with low-rank weights per sample on four of [tokens, width]: q, k and v, and those of many layers."""
    with planned_for(target), capturing() as captured:
        _lowrank(_QKV, width, tokens, rank, dtype, scale=True, index=False)
        _lowrank(_QKV, width, tokens, rank, dtype, scale=False, index=True)
        _lowrank(_LAYERS, width, tokens, rank, dtype, scale=True, index=True)
    return captured


def one_launch_calls(dtype: torch.dtype, target: Target) -> Iterator[tuple[str, Call]]:
    """A hidden layer and the projection after it in one launch, with every activation: it leaves few registers free."""
    if target.name != one_launch.TARGET:
        return
    for tiles, act, query in product_of(one_launch.TILES, _ACTIVATIONS, (False, True)):
        form = Form(f"{act}, inference", act=act, training=False, query=query)
        with forced(tiles):
            for call in calls(form, one_launch.columns(tiles), 4096, dtype, target):
                yield f"{form.name}, one launch", call


def candidate_calls(dtype: torch.dtype, target: Target) -> Iterator[tuple[str, Call]]:
    """The matrix kernels of MLPs and projections in every form with every candidate for their tiles; low-rank ones
    have tiles of their own."""
    for product, (width, tokens) in product_of(PRODUCTS, _EVEN_AND_UNEVEN):
        for tiles in candidates(product, target):
            with forced(tiles), forced_route("kernels"):
                made = [(form.name, call) for form in FORMS for call in calls(form, width, tokens, dtype, target)]
                made += [("grouped", call) for call in grouped_calls(width, tokens, dtype, target)]
            with forced(replace(tiles, splits=2)), forced_route("kernels"):
                made += [(form.name, call) for form in SPLIT for call in calls(form, width, tokens, dtype, target)]
                made += [("grouped", call) for call in grouped_calls(width, tokens, dtype, target)]
            for name, call in made:
                kernel, backward = call.kernel.fn.__name__, call.arguments.get("TRANSPOSED", False)
                of = _PRODUCTS.get(kernel, "forward")
                if "GROUP_M" in call.arguments and ("backward" if backward else of) == product:
                    yield f"{name}; {width} wide, {tokens} tokens", call


def all_calls(
    target: Target,
    dtypes: Sequence[torch.dtype],
    forms: Sequence[Form] = FORMS,
    widths: Sequence[int] = WIDTHS,
    tokens: Sequence[int] = TOKENS,
) -> Iterator[tuple[str, Call]]:
    """Every launch that these make on the target, with where it comes from. Many are the same to the compiler."""
    for dtype in dtypes:
        yield from candidate_calls(dtype, target)
        yield from one_launch_calls(dtype, target)
        for width in widths:
            for rows in tokens:
                shape = f"{width} wide, {rows} tokens"
                for form, way in product_of(forms, ("kernels", "vendor")):
                    with forced_route(way):
                        made = calls(form, width, rows, dtype, target)
                    for call in made:
                        yield f"{form.name}; {shape}", call
                for call in grouped_calls(width, rows, dtype, target):
                    yield f"grouped; {shape}", call
                for rank in RANKS:
                    for call in lowrank_calls(width, rows, rank, dtype, target):
                        yield f"rank {rank}; {shape}", call


@forced_route("kernels")
def sample() -> list[Configuration]:
    """One form of every kernel per target, another one on each; every way to multiply. The dtypes alternate."""
    chosen = []
    for turn, (name, target) in enumerate(TARGETS.items()):
        dtype = (torch.float16, torch.bfloat16)[turn % 2]
        captured = [(form.name, call) for form in FORMS for call in calls(form, *_WIDE, dtype, target)]
        with forced(replace(candidates("forward", target)[0], splits=2)):
            captured += [(form.name, call) for form in SPLIT for call in calls(form, *_WIDE, dtype, target)]
        captured += [(form.name, call) for form in FORMS if form.norm for call in calls(form, *_NARROW, dtype, target)]
        captured += list(one_launch_calls(dtype, target))
        captured += [("grouped", call) for call in grouped_calls(*_WIDE, dtype, target)]
        for rank in RANKS:
            captured += [(f"rank {rank}", call) for call in lowrank_calls(*_WIDE, rank, dtype, target)]
        forms: dict[tuple, list[Configuration]] = {}
        for config in distinct(captured, target):
            if name in EVERY_KERNEL or config.name in ELSEWHERE:
                forms.setdefault(_program(config), []).append(config)
        chosen += [group[turn % len(group)] for group in forms.values()]
    return chosen


def _train(form: Form, width: int, tokens: int, dtype: torch.dtype) -> None:
    parameters = _parameters(form, width, dtype, torch.float32)
    layers = form.layers()  # with every LayerNorm folded into the next product, as for many rows
    if asked_route() == "vendor":
        layers = mlps.trained(layers, parameters, tokens)
    x = _streams(form.shared, tokens, width, dtype=dtype)
    seed = _empty(1, dtype=torch.int64) if form.dropout else None
    w_q, b_q = _empty(width, width, dtype=dtype), _empty(width, dtype=dtype)
    wide = torch.float32 if form.wide_residual else dtype
    result = mlps.forward(
        x, layers, parameters, (1.0, 0.5), out_dtype=wide, save=True, seed=seed,
        residual=_streams(form.shared, tokens, width, dtype=wide) if form.wide_residual else None,
        query=(w_q, b_q) if form.query else None,
    )  # fmt: skip
    y = tuple(t.to(dtype) for t in result.y)
    w = _pair(width, width, dtype=dtype)
    linear(y, w, _pair(width, dtype=dtype))
    dp = _pair(tokens, width, dtype=dtype)
    dy = linear(dp, w, transposed=True)
    if form.trained_projection:
        gradients = WeightGradients([[(width, width)] * 2], tokens, dtype, dp[0].device, biases=False)
        gradients.add(0, dp, y)
        gradients.total()
    mlps_backward.backward(
        dy, x, layers, parameters, (1.0, 0.5), result.saved, shared=form.shared, needs_x=True, needs_parameters=True,
        x_dtype=wide, seed=seed, query=(_empty(tokens, width, dtype=dtype), w_q) if form.query else None,
        needs_query=form.query,
    )  # fmt: skip


def _infer(form: Form, width: int, tokens: int, dtype: torch.dtype) -> None:
    layers, parameters = form.layers(), _parameters(form, width, dtype, dtype)
    x = _streams(True, tokens, width, dtype=dtype)
    query = (_empty(width, width, dtype=dtype), None) if form.query else None
    w = _pair(width, width, dtype=dtype)
    if form.norm or form.strength:
        strength = _empty(2, dtype=torch.float32) if form.strength else None
        y = mlps.forward(
            x, layers, parameters, (1.0, 1.0), out_dtype=dtype, save=False, query=query, strength=strength
        ).y  # fmt: skip
        linear(y, w)
        return
    g = _pair(width, parameters[-1].w[0].shape[1], dtype=dtype)
    project(x, layers[:-1], parameters[:-1], w, g, _pair(width, dtype=dtype), query=query)


def _lowrank(
    parts: Sequence[float], width: int, tokens: int, rank: int, dtype: torch.dtype, scale: bool, index: bool
) -> None:
    """Forward and backward of slices that are such parts of the width wide: with and without their linears' product,
    with and without a gradient of x and of the scale."""
    samples = 4
    x, widths = _empty(samples, tokens, width, dtype=dtype), [int(part * width) for part in parts]
    w, biases = [_empty(n, width, dtype=dtype) for n in widths], [_empty(n, dtype=dtype) for n in widths]
    slices = LowRank(
        x,
        [_empty(samples, rank, width, dtype=dtype) for _ in widths],
        [_empty(samples, n, rank, dtype=dtype) for n in widths],
        _empty(len(widths), samples, dtype=torch.float32) if scale else None,
        _empty(samples, dtype=torch.int64) if index else None,
    )
    dy = [_empty(samples, tokens, n, dtype=dtype) for n in widths]
    lowrank_linear(slices, w, biases if index else [None] * len(w))
    lowrank_add(slices, dy)
    table = slices.table(dy, w)
    g, u = lowrank_shrink(slices, table, dy, with_u=True, scale_gradient=False)
    for base in (w, []):
        lowrank_input_gradient(slices, table, dy, base, g)
    parts = lowrank_factor_gradients(slices, table, dy, g, u, factors=True, scale=scale)
    lowrank_sums(slices, table, *parts)


def _parameters(form: Form, width: int, dtype: torch.dtype, vectors: torch.dtype) -> list[Parameters]:
    widths = [width, *(2 * width for _ in range(form.depth - 1)), width]
    parameters = []
    for layer, k, n in zip(form.layers(), widths[:-1], widths[1:], strict=True):
        alpha = _pair(1, dtype=vectors) if layer.act == "prelu" else None
        gamma, beta = (_pair(n, dtype=vectors) if layer.norm else None for _ in range(2))
        parameters.append(Parameters(_pair(n, k, dtype=dtype), _pair(n, dtype=dtype), alpha, gamma, beta))
    return parameters


def _streams(shared: bool, *shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    k, v = _pair(*shape, dtype=dtype)
    return (k, k) if shared else (k, v)


def _pair(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _empty(*shape, dtype=dtype), _empty(*shape, dtype=dtype)


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _program(config: Configuration) -> tuple:
    """What makes a kernel another program, not only another epilogue."""
    types = dict(config.signature)
    present = tuple(types.get(name, "constexpr") != "constexpr" for name in _OPTIONAL)
    flags = tuple(config.constant(name) for name in ("TRANSPOSED", "SHARED", "BASE", "SPLIT"))
    return config.name, flags, present
