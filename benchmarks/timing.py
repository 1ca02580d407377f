"""Timing two or more ways of doing one thing, fairly, on a machine that is not quiet."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


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

    def speedup(self, baseline: str, provider: str) -> float:
        """How many times as long the baseline takes: the ratio of the medians."""
        return self.median(baseline) / self.median(provider)


def interleave(providers: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> Comparison:
    """Runs every provider once per round, in turn, so that whatever else the machine does meets them alike.

    Every round begins with another one: what a provider leaves in the caches meets all the others alike, too.
    """
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    names = list(providers)
    for index in range(warmup + rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            providers[name]()
            if index >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return Comparison(seconds)
