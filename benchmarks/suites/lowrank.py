"""Low-rank weights of their own for every sample of a batch, on top of a frozen linear."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

import hnkernels as hn
import reference
from benchmarks.place import Place
from benchmarks.registry import Sides, Way, benchmark


@dataclass(frozen=True)
class Samples:
    """So many samples [tokens, width], each with factors of one rank, projected to n features."""

    width: int
    tokens: int
    n: int
    samples: int = 8
    rank: int = 4

    def __str__(self) -> str:
        return f"{self.width} x {self.tokens}, {self.samples} of rank {self.rank}"


ATTN1, ATTN2 = Samples(320, 1024, 320), Samples(768, 77, 640)
GPU = (Samples(320, 4096, 320), Samples(320, 4096, 320, rank=64), ATTN2, Samples(2048, 77, 1280))
TINY = Samples(24, 9, 16, samples=3)


@benchmark("lowrank", modes=("inference", "forward + backward"), seconds=6,
           providers=("einsum", "token", "loop", "compile", "portable", "triton", "bare"),
           shapes={"cpu": (ATTN1, ATTN2), "cuda": GPU, "interpreter": (TINY,)})  # fmt: skip
def lowrank(shape: Samples, place: Place, mode: str) -> Sides:
    """Two einsums, factors copied per token and a loop over samples are how it is usually written."""
    training = mode == "forward + backward"
    weight = place.tensor(shape.n, shape.width, scale=shape.width**-0.5)
    x = place.tensor(shape.samples, shape.tokens, shape.width, grad=training)
    a = place.tensor(shape.samples, shape.rank, shape.width, scale=shape.width**-0.5, grad=training)
    b = place.tensor(shape.samples, shape.n, shape.rank, grad=training)
    scale = torch.rand(shape.samples, device=place.device).to(x.dtype)
    given = (x, weight, a, b, scale)
    leaves = (x, a, b)
    functions = {
        "einsum": reference.by_einsum,
        "token": reference.by_token,
        "loop": reference.by_loop,
        "compile": torch.compile(reference.by_einsum, dynamic=False),
        "portable": partial(hn.lowrank_linear, backend="portable"),
    }
    absent = {}
    if place.library == "triton":
        functions["triton"] = partial(hn.lowrank_linear, backend="triton")
    else:
        absent["triton"] = "needs a GPU, or TRITON_INTERPRET=1"
    ways = {name: Way(partial(function, *given), leaves) for name, function in functions.items()}
    ways["bare"] = Way(lambda: F.linear(x, weight), (x,))
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in given]
    truth = Way(partial(reference.lowrank_linear, *exact), [exact[i] for i in (0, 2, 3)])
    upstream = [place.tensor(shape.samples, shape.tokens, shape.n)] if training else []
    return Sides(ways, truth, upstream, absent=absent)
