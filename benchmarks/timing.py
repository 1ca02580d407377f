"""Timing two or more ways of doing one thing, fairly, on a machine that is not quiet."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Runs = Sequence[Callable[[], object]]
"""The same call on several copies of its data; a GPU takes them in turn, so that its cache holds none of them."""


@dataclass(frozen=True)
class Comparison:
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
) -> Comparison:
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
    return Comparison(found)
