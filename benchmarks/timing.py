"""Timing two or more providers of one thing fairly on a machine that is not quiet; CUDA graphs of the same calls; and
what the machine can do at best."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.cases import Call, largest_error
from benchmarks.environment import Environment
from benchmarks.rows import Row

Runs = Sequence[Callable[[], object]]
"""The same call on several copies of its data; a GPU takes them in turn, so that its cache holds none of them."""


@dataclass(frozen=True)
class Timings:
    """Seconds per run of each provider, round by round.

    Attributes:
        seconds: provider → one figure per round; the rounds of all providers alternate.
    """

    seconds: Mapping[str, list[float]]

    def median(self, provider: str) -> float:
        """Median seconds of a provider."""
        return statistics.median(self.seconds[provider])

    def quartiles(self, provider: str) -> tuple[float, float]:
        """The first and the third; of a single round that one."""
        seconds = self.seconds[provider]
        if len(seconds) < 2:
            return seconds[0], seconds[0]
        first, _, third = statistics.quantiles(seconds, n=4, method="inclusive")
        return first, third


def cpu_seconds(runs: Runs) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    runs[0]()
    return time.perf_counter() - started


def cuda_seconds(runs: Runs) -> float:
    """Median seconds of a call on the GPU, by events, with the cache emptied before each."""
    from triton.testing import do_bench

    turns = itertools.cycle(runs)
    return do_bench(lambda: next(turns)(), return_mode="median") / 1000


def cuda_wall_seconds(runs: Runs) -> float:
    """Wall-clock seconds of one call and of all that it has launched."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    runs[0]()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def interleave(
    providers: Mapping[str, Runs],
    seconds: float,
    least: int = 5,
    most: int = 60,
    calls: int = 1,
    clock: Callable[[Runs], float] = cpu_seconds,
) -> Timings:
    """Runs every provider once per round, in turn, so that whatever else the machine does meets them alike.

    Every round begins with another one: what a provider leaves in the caches meets all the others alike, too.

    Args:
        providers: name → what is timed.
        seconds: to spend, about: as many rounds as fit, between ``least`` and ``most``.
        calls: calls of every provider in a round, in turn as well; the figure is their sum.
        clock: seconds of one call.
    """
    found: dict[str, list[float]] = {name: [] for name in providers}
    names = list(providers)
    rounds, index = most, 0
    while names and index < rounds:
        started = time.perf_counter()
        totals = dict.fromkeys(names, 0.0)
        for call in range(calls):
            first = (index + call) % len(names)
            for name in names[first:] + names[:first]:
                totals[name] += clock(providers[name])
        for name in names:
            found[name].append(totals[name])
        index += 1
        if index == 1:
            rounds = min(max(int(seconds / (time.perf_counter() - started)), least), most)
            if rounds > least and calls == 1:  # such a short round is still warming up; the check was no round
                found = {name: [] for name in providers}
                rounds += 1
    return Timings(found)


WARMUP = 3

SAME = 1e-2
"""Relative error between a call and its replay: a vendor's kernels may add up in another order, nothing more."""


def captured(call: Call) -> Callable[[], None]:
    """Replays the kernels of a call as a CUDA graph: what is left when launching costs the host nothing.

    Raises:
        RuntimeError: the call does something that a graph cannot hold, or its replay gives something else.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()  # computes nothing yet
    graph.replay()
    error = largest_error(results, call())
    if not error <= SAME:
        raise RuntimeError(f"its replay is wrong by {error:.1e}")

    def replay() -> None:
        assert results  # their memory is the graph's to write, as long as there is a graph
        graph.replay()

    return replay


def with_graphs(providers: Mapping[str, Sequence[Call]]) -> tuple[dict[str, Runs], dict[str, str]]:
    """The providers with ``"<name>, graph"`` for each that can be captured, and why the others cannot."""
    both: dict[str, Runs] = dict(providers)
    absent = {}
    for name, runs in providers.items():
        try:
            both[f"{name}, graph"] = [captured(run) for run in runs]
        except RuntimeError as fault:
            absent[f"{name}, graph"] = f"cannot be captured: {str(fault).splitlines()[0]}"
            torch.cuda.synchronize()
    return both, absent


COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Bytes: many times what any cache holds."""

SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the matrices."""


def ceilings(environment: Environment, seconds: float = 4.0) -> list[Row]:
    """Bandwidth, every byte read and every byte written, and rate of a square GEMM, a multiply-add as two."""
    source = environment.tensor(COPIED[environment.kind] // environment.tensor(0).element_size())
    target = source.clone()
    a, b = (
        environment.tensor(SIDE[environment.kind], SIDE[environment.kind]),
        environment.tensor(SIDE[environment.kind], SIDE[environment.kind]),
    )
    work = {
        "copy": (2 * COPIED[environment.kind], "bandwidth", "B/s"),
        "gemm": (2 * SIDE[environment.kind] ** 3, "rate", "FLOP/s"),
    }
    runs = {"copy": [lambda: target.copy_(source)], "gemm": [lambda: a @ b]}
    clock = cuda_seconds if environment.kind == "cuda" else cpu_seconds
    timings = interleave(runs, seconds, most=20, clock=clock)
    rows = []
    for name, (amount, quantity, unit) in work.items():
        low, high = timings.quartiles(name)
        what = ("measured", "ceiling", name, "large", environment.dtype, "torch", quantity)
        median, samples = amount / timings.median(name), len(timings.seconds[name])
        rows.append(Row(*what, median, unit, low=amount / high, high=amount / low, samples=samples))
    return rows
