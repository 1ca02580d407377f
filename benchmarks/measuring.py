"""A case from its ways to its rows: build, check, time what is right, side by side."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks import checking, graphs, modes, resident, timing
from benchmarks.place import Place
from benchmarks.registry import Case, Sides
from benchmarks.rows import Row

COPIES, UNCACHED = 4, 1 << 28
"""Of the data on a GPU, used in turn, as its cache may hold one; unless one has more bytes than any cache."""

ROUNDS, MOST_ROUNDS = {"cuda": 5, "interpreter": 1}, 60
"""On a GPU each is a median already; in the interpreter nothing is learnt from times."""


@dataclass(frozen=True)
class Measurement:
    """What a case came to.

    Attributes:
        case: which.
        comparison: the timings, without those of providers that are wrong.
        verdicts: provider → how wrong it is; providers that do something else have none.
        absent: provider → why it did not run.
        peaks: provider → bytes allocated on a GPU while it ran, beyond what was there before; on a CPU, where the
            benchmark asks for it, the most that a process of its own held.
        least: FLOPs and bytes that nobody can do without, where they are known.
    """

    case: Case
    comparison: timing.Comparison
    verdicts: Mapping[str, checking.Verdict]
    absent: Mapping[str, str]
    peaks: Mapping[str, int]
    least: tuple[int, int] | None = None

    def rows(self, place: Place) -> list[Row]:
        """As rows: times, errors, peaks, and the bound."""
        found = []
        target = "interpreter" if place.kind == "interpreter" else ""

        def add(provider: str, quantity: str, value: float, unit: str, kind: str = "measured", **statistics) -> None:
            what = (kind, self.case.benchmark.name, self.case.mode, str(self.case.shape), place.dtype, provider)
            found.append(Row(*what, quantity, value, unit, target=target, **statistics))

        for name, seconds in self.comparison.seconds.items():
            low, high = self.comparison.quartiles(name)
            add(name, "time", self.comparison.median(name), "s", low=low, high=high, samples=len(seconds))
        for name, verdict in self.verdicts.items():
            add(name, "error", verdict.error, "1")
        for name, size in self.peaks.items():
            add(name, "peak", size, "B")
        if self.least is not None:
            add("bound", "flops", self.least[0], "FLOP", "counted")
            add("bound", "bytes", self.least[1], "B", "counted")
        return found


def measure(case: Case, place: Place, seconds: float | None = None) -> Measurement:
    """Runs a case.

    Args:
        case: what to run.
        place: where.
        seconds: to spend; what the benchmark says if not given.
    """
    torch._dynamo.reset()  # what other shapes have compiled would count against this one's recompilations
    benchmark = case.benchmark
    sides = _copies(case, place)
    calls: dict[str, list[modes.Call]] = {}
    left_out = {"compile": "compiled at a device's shapes only"} if place.kind == "interpreter" else {}
    for copy in sides:
        for name in benchmark.providers:
            if name in copy.ways and name not in left_out:
                calls.setdefault(name, []).append(modes.MODES[case.mode](copy.ways[name], copy.upstream))
    verdicts, faults = _check(case, place, sides[0], {name: copies[0] for name, copies in calls.items()})
    absent = {**sides[0].absent, **left_out, **faults}
    right = {
        name: copies
        for name, copies in calls.items()
        if name not in faults and (name not in verdicts or verdicts[name].green)
    }
    timed: dict[str, timing.Runs] = dict(right)
    peaks = {}
    if place.kind == "cuda":
        peaks = {name: _peak(runs) for name, runs in right.items()}
        if benchmark.calls == 1 and case.mode != "backward":  # whose forward pass ran on another stream than a graph's
            timed, without = graphs.with_graphs(right)
            absent |= without
    with torch._functorch.config.patch(donated_buffer=False):  # a graph that is kept is gone through more than once
        comparison = timing.interleave(
            timed,
            benchmark.seconds if seconds is None else seconds,
            least=ROUNDS.get(place.kind, benchmark.rounds),
            most=ROUNDS.get(place.kind, MOST_ROUNDS),
            calls=benchmark.calls,
            clock=_clock(place, benchmark.calls),
        )
    least = sides[0].least
    del sides, calls, right, timed
    gc.collect()
    if benchmark.resident and place.kind == "cpu":
        peaks = {name: resident.peak(case, name) for name in comparison.seconds}
    return Measurement(case, comparison, verdicts, absent, peaks, least)


def _copies(case: Case, place: Place) -> list[Sides]:
    """The ways on as many copies of the data as are needed."""
    before = torch.cuda.memory_allocated() if place.kind == "cuda" else 0
    sides: list[Sides] = []
    for seed in range(COPIES):
        torch.manual_seed(seed)
        sides.append(case.benchmark.build(case.shape, place, case.mode))
        if place.kind != "cuda" or torch.cuda.memory_allocated() - before > UNCACHED:
            break
    return sides


def _clock(place: Place, calls: int) -> Callable[[timing.Runs], float]:
    if place.kind != "cuda":
        return timing.cpu_seconds
    return timing.cuda_seconds if calls == 1 else timing.cuda_wall_seconds


def _check(
    case: Case, place: Place, sides: Sides, calls: Mapping[str, modes.Call]
) -> tuple[dict[str, checking.Verdict], dict[str, str]]:
    """Verdicts on all that claim to do the same, and what went wrong with those that could not run at all."""
    results, faults = {}, {}
    with torch._functorch.config.patch(donated_buffer=False):
        for name, call in calls.items():
            try:
                results[name] = call()
            except Exception as fault:  # a compiler's, say: the others are measured nevertheless
                faults[name] = f"does not run: {type(fault).__name__}: {str(fault).strip().splitlines()[0]}"
    judged = {name: results[name] for name in case.benchmark.providers if name in results.keys() - {*sides.unchecked}}
    if not judged:
        raise RuntimeError(f"nothing that can be checked runs in {case.name}: {faults or dict(sides.absent)}")
    baseline = next(iter(judged))
    if sides.truth is not None:
        truth: Sequence[torch.Tensor] = modes.MODES[case.mode](sides.truth, [t.double() for t in sides.upstream])()
        least = checking.TOLERANCE[modes.has_backward(case.mode)] if place.dtype == "fp32" else 0.0
    else:
        truth, least = results[baseline], checking.MODEL_TOLERANCE[place.dtype]
    least = least if sides.allowed is None else sides.allowed
    return checking.check(judged, truth, baseline, least, checking.AT_MOST[place.dtype]), faults


def _peak(runs: timing.Runs) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    runs[0]()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
