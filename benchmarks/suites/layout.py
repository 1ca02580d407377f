"""Whether both first linears, of K and of V, should be one GEMM in the portable backend. So far: no."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from benchmarks.place import Place
from benchmarks.registry import Sides, Way, benchmark
from benchmarks.suites.projection import SD15, TEXT, Layer


@benchmark("first linears", modes=("inference",), providers=("two", "one"), shapes={"cpu": (*SD15, TEXT)}, seconds=2)
def first_linears(shape: Layer, place: Place, mode: str) -> Sides:
    """The weights lie side by side already, which favours the one GEMM: nothing is concatenated while it is timed."""
    x, hidden = place.tensor(shape.tokens, shape.width), 2 * shape.width
    both = place.tensor(2 * hidden, shape.width, scale=shape.width**-0.5)
    w_k, w_v = both.chunk(2)
    out_k, out_v = (place.tensor(shape.width, hidden, scale=hidden**-0.5) for _ in "kv")

    def two() -> tuple[Tensor, Tensor]:
        return F.linear(F.linear(x, w_k).relu_(), out_k), F.linear(F.linear(x, w_v).relu_(), out_v)

    def one() -> tuple[Tensor, Tensor]:
        h_k, h_v = F.linear(x, both).relu_().chunk(2, dim=-1)
        return F.linear(h_k, out_k), F.linear(h_v, out_v)

    return Sides({"two": Way(two), "one": Way(one)})
