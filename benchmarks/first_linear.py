"""Whether both first linears, of K and of V, should be one GEMM in the portable backend. So far: no."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.result import Result
from benchmarks.timing import interleave

SHAPES = ((768, 77), (320, 4096), (640, 1024), (1280, 256))
ROUNDS = 30


def run() -> list[Result]:
    return [_one(width, tokens) for width, tokens in SHAPES]


def _one(width: int, tokens: int) -> Result:
    """The weights lie side by side already, which favours the one GEMM: nothing is concatenated while it is timed."""
    torch.manual_seed(0)
    x = torch.randn(tokens, width)
    hidden = 2 * width
    w_k, w_v = (torch.randn(hidden, width) * width**-0.5 for _ in range(2))
    out_k, out_v = (torch.randn(width, hidden) * hidden**-0.5 for _ in range(2))
    both = torch.cat([w_k, w_v])

    def two() -> tuple[torch.Tensor, torch.Tensor]:
        return F.linear(F.linear(x, w_k).relu_(), out_k), F.linear(F.linear(x, w_v).relu_(), out_v)

    def one() -> tuple[torch.Tensor, torch.Tensor]:
        h_k, h_v = F.linear(x, both).relu_().chunk(2, dim=-1)
        return F.linear(h_k, out_k), F.linear(h_v, out_v)

    with torch.no_grad():
        torch.testing.assert_close(one(), two(), rtol=1e-4, atol=1e-4)
        ratio = interleave({"two": two, "one": one}, ROUNDS).speedup("two", "one")
    name = f"both first linears as one GEMM, {width} x {tokens}"
    return Result(name, "as two", ratio, "x", "none; used if it wins", True, ROUNDS)
