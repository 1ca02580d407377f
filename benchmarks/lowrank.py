"""Low-rank weights of their own for every sample of a batch, on top of a frozen linear: what that costs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

import hnkernels as hn
import reference
from benchmarks.result import Result
from benchmarks.timing import interleave

SHAPES = ((320, 320, 1024), (640, 768, 77))  # n, d and tokens: to_q, to_k, to_v of attn1; to_k, to_v of attn2
SAMPLES, RANK = 8, 4
ROUNDS = 60


def run() -> list[Result]:
    return [result for shape in SHAPES for result in _one(*shape)]


def _one(n: int, d: int, tokens: int) -> list[Result]:
    torch.manual_seed(0)
    weight = torch.randn(n, d) * d**-0.5
    x = torch.randn(SAMPLES, tokens, d, requires_grad=True)
    a = (torch.randn(SAMPLES, RANK, d) * d**-0.5).requires_grad_()
    b = torch.randn(SAMPLES, n, RANK, requires_grad=True)
    scale = torch.rand(SAMPLES)
    upstream = torch.randn(SAMPLES, tokens, n)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "bare": lambda: F.linear(x, weight),
        "hnkernels": lambda: hn.lowrank_linear(x, weight, a, b, scale),
        "einsum": lambda: reference.by_einsum(x, weight, a, b, scale),
        "token": lambda: reference.by_token(x, weight, a, b, scale),
        "loop": lambda: reference.by_loop(x, weight, a, b, scale),
    }
    expected = reference.lowrank_linear(x, weight, a, b, scale)
    for name, way in ways.items():
        if name != "bare":
            torch.testing.assert_close(way(), expected, rtol=1e-4, atol=1e-4)

    def both(way: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def forward_and_backward() -> None:
            x.grad = a.grad = b.grad = None
            way().backward(upstream)

        return forward_and_backward

    times = interleave({name: both(way) for name, way in ways.items()}, ROUNDS)
    extra = {name: times.median(name) - times.median("bare") for name in ways}
    what = f"{SAMPLES} sets of rank {RANK}, {d} x {tokens}: what they add, forward + backward"
    ratios = {name: extra["hnkernels"] / extra[name] for name in ("einsum", "token", "loop")}
    return [
        Result(what, "two einsums", ratios["einsum"], "x its cost", "≤ 0.7", ratios["einsum"] <= 0.7, ROUNDS),
        Result(
            what, "factors copied per token", ratios["token"], "x its cost", "≤ 0.2", ratios["token"] <= 0.2, ROUNDS
        ),
        Result(what, "a loop over the samples", ratios["loop"], "x its cost", "none", True, ROUNDS),
    ]
