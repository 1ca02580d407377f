"""What the machine can do at best: how fast it copies memory, and how fast it multiplies large matrices."""

from __future__ import annotations

from benchmarks import timing
from benchmarks.place import Place
from benchmarks.rows import Row

COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Bytes: many times what any cache holds."""

SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the matrices."""


def ceilings(place: Place, seconds: float = 4.0) -> list[Row]:
    """Bandwidth, every byte read and every byte written, and rate of a square GEMM, a multiply-add as two."""
    source = place.tensor(COPIED[place.kind] // place.tensor(0).element_size())
    target = source.clone()
    a, b = place.tensor(SIDE[place.kind], SIDE[place.kind]), place.tensor(SIDE[place.kind], SIDE[place.kind])
    work = {"copy": (2 * COPIED[place.kind], "bandwidth", "B/s"), "gemm": (2 * SIDE[place.kind] ** 3, "rate", "FLOP/s")}
    runs = {"copy": [lambda: target.copy_(source)], "gemm": [lambda: a @ b]}
    clock = timing.cuda_seconds if place.kind == "cuda" else timing.cpu_seconds
    comparison = timing.interleave(runs, seconds, most=20, clock=clock)
    rows = []
    for name, (amount, quantity, unit) in work.items():
        low, high = comparison.quartiles(name)
        rows.append(
            Row(
                "measured", "ceiling", name, "large", place.dtype, "torch", quantity, amount / comparison.median(name),
                unit, low=amount / high, high=amount / low, samples=len(comparison.seconds[name]),
            )
        )  # fmt: skip
    return rows
