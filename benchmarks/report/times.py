"""The timings among the rows, by what was timed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from benchmarks.rows import Row

CaseKey = tuple[str, str, str]
"""Benchmark, mode, shape."""


class Times:
    """Median seconds of every case and provider, those of Triton's interpreter left out."""

    def __init__(self, rows: Iterable[Row]):
        self.cases: dict[CaseKey, dict[str, Row]] = {}
        for row in rows:
            if row.quantity == "time" and row.kind == "measured" and row.target != "interpreter":
                self.cases.setdefault((row.benchmark, row.mode, row.shape), {})[row.provider] = row

    def seconds(self, benchmark: str, mode: str, shape: str, provider: str) -> float:
        """Raises ``KeyError`` where it was not timed."""
        return self.cases[benchmark, mode, shape][provider].value

    def ours(self, benchmark: str, mode: str, shape: str) -> str:
        """hnkernels' provider: the kernels where they ran, else plain PyTorch."""
        return "triton" if "triton" in self.cases[benchmark, mode, shape] else "portable"


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent p of ``y = c·xᵖ`` that fits best, by least squares of the logarithms; nan for fewer than two."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len(logs) < 2:
        return math.nan
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)
