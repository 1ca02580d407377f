"""Attention layers one by one: K and V with a hypernetwork, and linears with low-rank weights per sample, at the shapes
of Stable Diffusion; and how the cost grows with tokens, width, rows, networks and layers, beside how the arithmetic
does (``AXES``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hnkernels as hn
import reference
from benchmarks import baselines, shapes
from benchmarks.accounting import ELEMENT, bounds
from benchmarks.cases import Build, Comparison, Provider, benchmark
from benchmarks.rows import Environment
from benchmarks.shapes import (
    AFFINE,
    FIRST_TEXTS,
    PAIR,
    SD15,
    SD15_TEXT,
    SDXL,
    WIDTHS,
    Layers,
    Network,
    Samples,
    image,
)
from benchmarks.unets import over_one_text

KV = tuple[Tensor, Tensor]
NORMED = SD15[0].of(Network("silu", True))
ON_GPU = (*SD15, FIRST_TEXTS[0], NORMED, PAIR, FIRST_TEXTS[1], *SDXL, FIRST_TEXTS[2])
SHAPES = {"cpu": (SD15[0], SD15[2], FIRST_TEXTS[0]), "cuda": ON_GPU, "interpreter": shapes.TINY}
BY_SAMPLE = {"cpu": shapes.SAMPLES, "cuda": shapes.SAMPLES_ON_GPU, "interpreter": (shapes.TINY_SAMPLES,)}


@benchmark("projection", modes=("inference", "forward", "backward", "forward + backward"), shapes=SHAPES, seconds=3)
def projection(shape: Layers, environment: Environment, mode: str) -> Comparison:
    return projected(shape, environment, mode)


@benchmark("recompute", modes=("recompute",), seconds=4,
           shapes={"cpu": (SD15[0],), "cuda": (*SD15, NORMED), "interpreter": shapes.TINY})  # fmt: skip
def recompute(shape: Layers, environment: Environment, mode: str) -> Comparison:
    """Nothing is kept for the backward pass but the context."""
    return projected(shape, environment, mode)


@benchmark("affine", modes=("inference",), providers=("reference", "eager", "compile", "portable", "triton", "bare"),
           shapes={kind: [s.of(AFFINE) for s in every if not s.network.layer_norm]
                   for kind, every in SHAPES.items()})  # fmt: skip
def affine(shape: Layers, environment: Environment, mode: str) -> Comparison:
    """Without an activation, A1111's default: the network is folded into the projection."""
    return projected(shape, environment, mode)


def projected(shape: Layers, environment: Environment, mode: str) -> Comparison:
    """K and V of one layer by every provider, from a context of one row."""
    training, again = mode != "inference", mode == "recompute"
    network, (n,) = shape.network, shape.outs
    x = environment.tensor(shape.tokens, shape.width, grad=training and not shape.text)
    w_k, w_v = (environment.tensor(n, shape.width, scale=shape.width**-0.5) for _ in "kv")
    net = hn.Hypernetwork((shape.width,), activation=network.activation, layer_norm=network.layer_norm)
    net = net.to(x).train(training).requires_grad_(training)
    mlps = net[shape.width]

    def provider(run: Callable[[Tensor], KV], *modules: nn.Module, x: Tensor = x, repeats: bool = again) -> Provider:
        """K and V of x; leaves: x and the parameters of the modules."""
        leaves = [*([x] if x.requires_grad else []), *(p for m in modules for p in m.parameters())]
        return Provider(partial(checkpoint, run, x, use_reentrant=False) if repeats else lambda: run(x), leaves)

    def theirs(pair: Sequence[nn.Module], w_k: Tensor = w_k, w_v: Tensor = w_v) -> Callable[[Tensor], KV]:
        return lambda x: reference.project_kv(x, pair[:1], pair[1:], w_k, w_v)

    def ours(backend: str, **options: bool) -> Callable[[Tensor], KV]:
        return lambda x: hn.hyper_kv(x, *mlps, w_k, w_v, backend=backend, **options)

    compose = not training and not network.layer_norm
    pairs = {name: _copies(net, shape.width, x) for name in ("reference", "eager", "compile")}
    providers = {
        "reference": provider(theirs(pairs["reference"]), *pairs["reference"]),
        "eager": provider(_eager(pairs["eager"], w_k, w_v, compose), *pairs["eager"]),
        "compile": provider(torch.compile(theirs(pairs["compile"]), dynamic=False), *pairs["compile"]),
        "portable": provider(ours("portable"), *mlps),
        "bare": provider(lambda x: (x @ w_k.mT, x @ w_v.mT), x=x.detach(), repeats=False),
    }
    if environment.library == "triton":
        providers["triton"] = provider(ours("triton", recompute=again), *mlps, repeats=False)
    exact = _copies(net, shape.width, x.double())
    truth_x = x.detach().double().requires_grad_(x.requires_grad)
    truth = provider(theirs(exact, w_k.double(), w_v.double()), *exact, x=truth_x, repeats=False)
    upstream = [torch.randn_like(x[:, :1].expand(-1, n).detach()) for _ in "kv"] if training else []
    bound = bounds(shape)[mode]
    least = (bound.flops, bound.bytes_moved * x.element_size() // ELEMENT)
    return Comparison(providers, truth, upstream, least=least)


@benchmark("first linears", modes=("inference",), providers=("two", "one"), seconds=2,
           shapes={"cpu": (*SD15, FIRST_TEXTS[0])})  # fmt: skip
def first_linears(shape: Layers, environment: Environment, mode: str) -> Comparison:
    """Whether both first linears, of K and of V, should be one GEMM in the portable backend: so far they should not.

    The weights lie side by side already, which favours the one GEMM: nothing is concatenated while it is timed.
    """
    x, hidden = environment.tensor(shape.tokens, shape.width), 2 * shape.width
    both = environment.tensor(2 * hidden, shape.width, scale=shape.width**-0.5)
    w_k, w_v = both.chunk(2)
    out_k, out_v = (environment.tensor(shape.width, hidden, scale=hidden**-0.5) for _ in "kv")

    def two() -> tuple[Tensor, Tensor]:
        return F.linear(F.linear(x, w_k).relu_(), out_k), F.linear(F.linear(x, w_v).relu_(), out_v)

    def one() -> tuple[Tensor, Tensor]:
        h_k, h_v = F.linear(x, both).relu_().chunk(2, dim=-1)
        return F.linear(h_k, out_k), F.linear(h_v, out_v)

    return Comparison({"two": Provider(two), "one": Provider(one)})


@benchmark("lowrank", modes=("inference", "forward + backward"), seconds=6, shapes=BY_SAMPLE,
           providers=("einsum", "token", "loop", "compile", "portable", "triton", "bare"))  # fmt: skip
def lowrank(shape: Samples, environment: Environment, mode: str) -> Comparison:
    """Two einsums, factors copied per token and a loop over samples are how it is usually written."""
    training, (n,) = mode == "forward + backward", shape.outs
    weight = environment.tensor(n, shape.width, scale=shape.width**-0.5)
    x = environment.tensor(shape.samples, shape.tokens, shape.width, grad=training)
    a = environment.tensor(shape.samples, shape.rank, shape.width, scale=shape.width**-0.5, grad=training)
    b = environment.tensor(shape.samples, n, shape.rank, grad=training)
    scale = torch.rand(shape.samples, device=environment.device).to(x.dtype)
    given = (x, weight, a, b, scale)
    leaves = (x, a, b)
    functions = {
        "einsum": reference.by_einsum,
        "token": reference.by_token,
        "loop": reference.by_loop,
        "compile": torch.compile(reference.by_einsum, dynamic=False),
        "portable": partial(hn.lowrank_linear, backend="portable"),
    }
    if environment.library == "triton":
        functions["triton"] = partial(hn.lowrank_linear, backend="triton")
    providers = {name: Provider(partial(function, *given), leaves) for name, function in functions.items()}
    providers["bare"] = Provider(lambda: F.linear(x, weight), (x,))
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in given]
    truth = Provider(partial(reference.lowrank_linear, *exact), [exact[i] for i in (0, 2, 3)])
    upstream = [environment.tensor(shape.samples, shape.tokens, n)] if training else []
    return Comparison(providers, truth, upstream)


def _copies(net: hn.Hypernetwork, width: int, like: Tensor) -> tuple[nn.Module, nn.Module]:
    """The reference's K and V modules with the network's parameters, in the dtype and on the device of a tensor."""
    mlp_k, mlp_v = baselines.reference_pair(net, width)
    trained = net.training
    return mlp_k.to(like).requires_grad_(trained), mlp_v.to(like).requires_grad_(trained)


def _eager(pair: Sequence[nn.Module], w_k: Tensor, w_v: Tensor, compose: bool) -> Callable[[Tensor], KV]:
    """The kernels' algebra; where they compose, with all in environment that is computed once."""
    if not compose:
        return lambda x: baselines.hyper_kv(x, *pair, w_k, w_v)
    composed = [baselines.compose(mlp, w) for mlp, w in zip(pair, (w_k, w_v), strict=True)]
    return lambda x: baselines.hyper_kv(x, *pair, w_k, w_v, composed=composed)


@dataclass(frozen=True)
class Axis:
    """A quantity that is varied.

    Attributes:
        what: how it reads.
        values: on a CPU and on a GPU.
        build: from a value, an environment and the mode to the comparison.
        work: ``"reference"``, ``"ours"`` → from a value to the arithmetic, in any unit: the cost should grow like it.
        mode: what is timed.
    """

    what: str
    values: Mapping[str, tuple[int, ...]]
    build: Build
    work: Mapping[str, Callable[[int], float]]
    mode: str = "new prompt"


TOKENS = (64, 256, 1024, 4096, 16384)


def _layers(environment: Environment, mode: str, **changes: Any) -> Comparison:
    """Cross-attention layers over one text: the 16 of SD 1.5, where their number is not varied."""
    return over_one_text(replace(SD15_TEXT, **changes), environment, mode, compiled=False)


def _work(layers: int, channels: int, networks: int, evaluations: int) -> float:
    """FLOPs per token and column of the text: ``[1, 2, 1]`` networks for K and V, so often, and the projections."""
    return 16 * SD15_TEXT.width * networks * evaluations + 4 * layers * channels


_MEAN = sum(SD15_TEXT.outs) // len(SD15_TEXT.outs)
_CHANNELS = 640

AXES = {
    "tokens": Axis(
        "tokens of a layer 320 wide", {"cpu": TOKENS, "cuda": TOKENS},
        lambda n, there, mode: projected(image(320, n), there, mode),
        {"reference": float, "ours": float}, mode="inference",
    ),
    "width": Axis(
        "width of a layer of 256 tokens (GPU: 4096)", {"cpu": WIDTHS, "cuda": WIDTHS},
        lambda n, there, mode: projected(image(n, 256 if there.kind == "cpu" else 4096), there, mode),
        {"reference": lambda n: n**2, "ours": lambda n: n**2}, mode="inference",
    ),
    "rows": Axis(
        "rows of a batch, 16 cross-attention layers", {"cpu": (1, 2, 4, 8), "cuda": (1, 2, 4, 8, 16)},
        lambda n, there, mode: _layers(there, mode, rows=n), {"reference": float, "ours": float},
    ),
    "networks": Axis(
        "networks on 16 cross-attention layers", {"cpu": (1, 2, 4, 8), "cuda": (1, 2, 4, 8)},
        lambda n, there, mode: _layers(there, mode, networks=n),
        {"reference": lambda n: _work(16, _MEAN, n, 16), "ours": lambda n: _work(16, _MEAN, n, 1)},
    ),
    "layers": Axis(
        "cross-attention layers of 640 channels", {"cpu": (2, 4, 8, 16, 32), "cuda": (4, 8, 16, 32, 64)},
        lambda n, there, mode: _layers(there, mode, outs=(_CHANNELS,) * n),
        {"reference": lambda n: _work(n, _CHANNELS, 1, n), "ours": lambda n: _work(n, _CHANNELS, 1, 1)},
    ),
}  # fmt: skip

for _name, _axis in AXES.items():
    benchmark(
        f"scaling: {_name}", modes=(_axis.mode,), providers=("reference", "portable", "triton", "bare"),
        shapes=_axis.values, seconds=1,
    )(_axis.build)  # fmt: skip
