"""K and V of one attention layer with a hypernetwork [1, 2, 1], at the shapes of Stable Diffusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hnkernels as hn
import reference
from benchmarks import same_algebra
from benchmarks.accounting import bound
from benchmarks.baseline import reference_pair
from benchmarks.place import Place
from benchmarks.registry import Sides, Way, benchmark

KV = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Layer:
    """Contexts [tokens, width], projected to n features.

    Attributes:
        text: the context is a text's and takes no gradient.
        activation, layer_norm: of the hypernetwork.
    """

    width: int
    tokens: int
    n: int
    text: bool = False
    activation: str | None = "relu"
    layer_norm: bool = False

    def __str__(self) -> str:
        network = "" if self.activation == "relu" else f", {self.activation or 'affine'}"
        return f"{self.width} x {self.tokens}{network}{', LayerNorm' if self.layer_norm else ''}"


SD15 = (Layer(320, 4096, 320), Layer(640, 1024, 640), Layer(1280, 256, 1280))
TEXT = Layer(768, 77, 320, text=True)
NORMED = Layer(320, 4096, 320, activation="silu", layer_norm=True)
GPU = (
    *SD15, TEXT, NORMED, Layer(320, 8192, 320), Layer(1024, 77, 320, text=True),
    Layer(640, 4096, 640), Layer(1280, 1024, 1280), Layer(2048, 77, 640, text=True),
)  # fmt: skip
TINY = (Layer(16, 24, 16), Layer(24, 7, 16, text=True), Layer(16, 24, 16, activation="silu", layer_norm=True))
SHAPES = {"cpu": (SD15[0], SD15[2], TEXT), "cuda": GPU, "interpreter": TINY}


@benchmark("projection", modes=("inference", "forward", "backward", "forward + backward"), shapes=SHAPES, seconds=3)
def projection(shape: Layer, place: Place, mode: str) -> Sides:
    return sides(shape, place, mode)


@benchmark("recompute", modes=("recompute",), seconds=4,
           shapes={"cpu": (SD15[0],), "cuda": (*SD15, NORMED), "interpreter": TINY})  # fmt: skip
def recompute(shape: Layer, place: Place, mode: str) -> Sides:
    """Nothing is kept for the backward pass but the context."""
    return sides(shape, place, mode)


@benchmark("affine", modes=("inference",), providers=("reference", "eager", "compile", "portable", "triton", "bare"),
           shapes={kind: [Layer(s.width, s.tokens, s.n, s.text, activation=None) for s in shapes if not s.layer_norm]
                   for kind, shapes in SHAPES.items()})  # fmt: skip
def affine(shape: Layer, place: Place, mode: str) -> Sides:
    """Without an activation, A1111's default: the network is folded into the projection."""
    return sides(shape, place, mode)


def sides(shape: Layer, place: Place, mode: str) -> Sides:
    training, again = mode != "inference", mode == "recompute"
    x = place.tensor(shape.tokens, shape.width, grad=training and not shape.text)
    w_k, w_v = (place.tensor(shape.n, shape.width, scale=shape.width**-0.5) for _ in "kv")
    net = hn.Hypernetwork((shape.width,), activation=shape.activation, layer_norm=shape.layer_norm)
    net = net.to(x).train(training).requires_grad_(training)
    mlps = net[shape.width]

    def way(run: Callable[[Tensor], KV], *modules: nn.Module, x: Tensor = x, repeats: bool = again) -> Way:
        """K and V of x; leaves: x and the parameters of the modules."""
        leaves = [*([x] if x.requires_grad else []), *(p for m in modules for p in m.parameters())]
        return Way(partial(checkpoint, run, x, use_reentrant=False) if repeats else lambda: run(x), leaves)

    def theirs(pair: Sequence[nn.Module], w_k: Tensor = w_k, w_v: Tensor = w_v) -> Callable[[Tensor], KV]:
        return lambda x: reference.project_kv(x, pair[:1], pair[1:], w_k, w_v)

    def ours(backend: str, **options: bool) -> Callable[[Tensor], KV]:
        return lambda x: hn.hyper_kv(x, *mlps, w_k, w_v, backend=backend, **options)

    pairs = {name: _copies(net, shape.width, x) for name in ("reference", "eager", "compile")}
    ways = {
        "reference": way(theirs(pairs["reference"]), *pairs["reference"]),
        "eager": way(_eager(pairs["eager"], w_k, w_v, compose=not training and not shape.layer_norm), *pairs["eager"]),
        "compile": way(torch.compile(theirs(pairs["compile"]), dynamic=False), *pairs["compile"]),
        "portable": way(ours("portable"), *mlps),
        "bare": way(lambda x: (x @ w_k.mT, x @ w_v.mT), x=x.detach(), repeats=False),
    }
    absent = {}
    if place.library == "triton":
        ways["triton"] = way(ours("triton", recompute=again), *mlps, repeats=False)
    else:
        absent["triton"] = "needs a GPU, or TRITON_INTERPRET=1"
    exact = _copies(net, shape.width, x.double())
    truth_x = x.detach().double().requires_grad_(x.requires_grad)
    truth = way(theirs(exact, w_k.double(), w_v.double()), *exact, x=truth_x, repeats=False)
    upstream = [torch.randn_like(x[:, :1].expand(-1, shape.n).detach()) for _ in "kv"] if training else []
    passes = bound.projections(
        shape.tokens, shape.width, 2 * shape.width, [shape.n], layer_norm=shape.layer_norm,
        affine=shape.activation is None, input_gradient=not shape.text,
    )  # fmt: skip
    # The bound counts bytes of two per element.
    least = (passes[mode].flops, passes[mode].bytes_moved * x.element_size() // bound.ELEMENT)
    return Sides(ways, truth, upstream, absent=absent, least=least)


def _copies(net: hn.Hypernetwork, width: int, like: Tensor) -> tuple[nn.Module, nn.Module]:
    """The reference's K and V modules with the network's parameters, in the dtype and on the device of a tensor."""
    mlp_k, mlp_v = reference_pair(net, width)
    trained = net.training
    return mlp_k.to(like).requires_grad_(trained), mlp_v.to(like).requires_grad_(trained)


def _eager(pair: Sequence[nn.Module], w_k: Tensor, w_v: Tensor, compose: bool) -> Callable[[Tensor], KV]:
    """The kernels' algebra; where they compose, with all in place that is computed once."""
    if not compose:
        return lambda x: same_algebra.hyper_kv(x, *pair, w_k, w_v)
    composed = [same_algebra.compose(mlp, w) for mlp, w in zip(pair, (w_k, w_v), strict=True)]
    return lambda x: same_algebra.hyper_kv(x, *pair, w_k, w_v, composed=composed)
