"""A case from its providers to its rows: build, check, time what is right, in turn; on a GPU as CUDA graphs too."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.cases import (
    AT_MOST,
    MODEL_TOLERANCE,
    MODES,
    TOLERANCE,
    Call,
    Case,
    Comparison,
    Verdict,
    cases,
    check,
    has_backward,
    largest_error,
)
from benchmarks.environment import (
    THREADS,
    Environment,
    Runs,
    Timings,
    cpu_seconds,
    cuda_seconds,
    cuda_wall_seconds,
    here,
    interleave,
)
from benchmarks.rows import Row

COPIES, UNCACHED = 4, 1 << 28
"""Of the data on a GPU, used in turn, as its cache may hold one; unless one has more bytes than any cache."""

ROUNDS, MOST_ROUNDS = {"cuda": 5, "interpreter": 1}, 60
"""On a GPU each is a median already; in the interpreter nothing is learnt from times."""

WARMUP = 3

SAME = 1e-2
"""Relative error between a call and its replay: a vendor's kernels may add up in another order, nothing more."""


@dataclass(frozen=True)
class Measurement:
    """What a case came to.

    Attributes:
        case: which.
        timings: without those of providers that are wrong.
        verdicts: provider → how wrong it is; providers that do something else have none.
        absent: provider → why it did not run.
        peaks: provider → bytes allocated on a GPU while it ran, beyond what was there before; on a CPU, where the
            benchmark asks for it, the most that a process of its own held.
        least: FLOPs and bytes that nobody can do without, where they are known.
    """

    case: Case
    timings: Timings
    verdicts: Mapping[str, Verdict]
    absent: Mapping[str, str]
    peaks: Mapping[str, int]
    least: tuple[int, int] | None = None

    def rows(self, environment: Environment) -> list[Row]:
        """As rows: times, errors, peaks, and the bound."""
        found = []
        target = "interpreter" if environment.kind == "interpreter" else ""

        def add(provider: str, quantity: str, value: float, unit: str, kind: str = "measured", **statistics) -> None:
            what = (kind, self.case.benchmark.name, self.case.mode, str(self.case.shape), environment.dtype, provider)
            found.append(Row(*what, quantity, value, unit, target=target, **statistics))

        for name, seconds in self.timings.seconds.items():
            low, high = self.timings.quartiles(name)
            add(name, "time", self.timings.median(name), "s", low=low, high=high, samples=len(seconds))
        for name, verdict in self.verdicts.items():
            add(name, "error", verdict.error, "1")
        for name, size in self.peaks.items():
            add(name, "peak", size, "B")
        if self.least is not None:
            add("bound", "flops", self.least[0], "FLOP", "counted")
            add("bound", "bytes", self.least[1], "B", "counted")
        return found


def measure(case: Case, environment: Environment, seconds: float | None = None) -> Measurement:
    """Runs a case.

    Args:
        case: what to run.
        environment: where.
        seconds: to spend; what the benchmark says if not given.
    """
    torch._dynamo.reset()  # what other shapes have compiled would count against this one's recompilations
    benchmark = case.benchmark
    comparisons = _built(case, environment)
    calls: dict[str, list[Call]] = {}
    left_out = {"compile": "compiled at a device's shapes only"} if environment.kind == "interpreter" else {}
    for comparison in comparisons:
        for name in benchmark.providers:
            if name in comparison.providers and name not in left_out:
                calls.setdefault(name, []).append(MODES[case.mode](comparison.providers[name], comparison.upstream))
    verdicts, faults = _check(case, environment, comparisons[0], {name: copies[0] for name, copies in calls.items()})
    absent = {**comparisons[0].absent, **left_out, **faults}
    right = {
        name: copies
        for name, copies in calls.items()
        if name not in faults and (name not in verdicts or verdicts[name].green)
    }
    timed: dict[str, Runs] = dict(right)
    peaks = {}
    if environment.kind == "cuda":
        peaks = {name: _peak(runs) for name, runs in right.items()}
        if benchmark.calls == 1 and case.mode != "backward":  # whose forward pass ran on another stream than a graph's
            timed, without = with_graphs(right)
            absent |= without
    with torch._functorch.config.patch(donated_buffer=False):  # a graph that is kept is gone through more than once
        timings = interleave(
            timed,
            benchmark.seconds if seconds is None else seconds,
            least=ROUNDS.get(environment.kind, benchmark.rounds),
            most=ROUNDS.get(environment.kind, MOST_ROUNDS),
            calls=benchmark.calls,
            clock=_clock(environment, benchmark.calls),
        )
    least = comparisons[0].least
    del comparisons, comparison, calls, right, timed
    gc.collect()
    if benchmark.resident and environment.kind == "cpu":
        peaks = {name: resident_peak(case, name) for name in timings.seconds}
    return Measurement(case, timings, verdicts, absent, peaks, least)


def _built(case: Case, environment: Environment) -> list[Comparison]:
    """The providers on as many copies of the data as are needed."""
    before = torch.cuda.memory_allocated() if environment.kind == "cuda" else 0
    copies: list[Comparison] = []
    for seed in range(COPIES):
        torch.manual_seed(seed)
        copies.append(case.benchmark.build(case.shape, environment, case.mode))
        if environment.kind != "cuda" or torch.cuda.memory_allocated() - before > UNCACHED:
            break
    return copies


def _clock(environment: Environment, calls: int) -> Callable[[Runs], float]:
    if environment.kind != "cuda":
        return cpu_seconds
    return cuda_seconds if calls == 1 else cuda_wall_seconds


def _check(
    case: Case, environment: Environment, comparison: Comparison, calls: Mapping[str, Call]
) -> tuple[dict[str, Verdict], dict[str, str]]:
    """Verdicts on all that claim to do the same, and what went wrong with those that could not run at all."""
    results, faults = {}, {}
    with torch._functorch.config.patch(donated_buffer=False):
        for name, call in calls.items():
            try:
                results[name] = call()
            except Exception as fault:  # a compiler's, say: the others are measured nevertheless
                faults[name] = f"does not run: {type(fault).__name__}: {str(fault).strip().splitlines()[0]}"
    judged = {
        name: results[name] for name in case.benchmark.providers if name in results.keys() - {*comparison.unchecked}
    }
    if not judged:
        raise RuntimeError(f"nothing that can be checked runs in {case.name}: {faults or dict(comparison.absent)}")
    baseline = next(iter(judged))
    if comparison.truth is not None:
        truth: Sequence[torch.Tensor] = MODES[case.mode](comparison.truth, [t.double() for t in comparison.upstream])()
        least = TOLERANCE[has_backward(case.mode)] if environment.dtype == "fp32" else 0.0
    else:
        truth, least = results[baseline], MODEL_TOLERANCE[environment.dtype]
    least = least if comparison.allowed is None else comparison.allowed
    return check(judged, truth, baseline, least, AT_MOST[environment.dtype]), faults


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


def _peak(runs: Runs) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    runs[0]()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident_peak(case: Case, provider: str) -> int:
    """Peak resident bytes of a fresh process that makes one call of one provider and nothing else; Linux only."""
    what = [case.benchmark.name, case.mode, str(case.shape), provider]
    command = [sys.executable, "-m", "benchmarks.measuring", *what]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return int(json.loads(done.stdout.splitlines()[-1]))


def resident_bytes() -> int:
    """The most that this process has held so far; Linux only.

    Not ``getrusage``: its figure starts from that of the parent process, which may be large.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(name: str, mode: str, shape: str, provider: str) -> None:
    """Prints the peak resident bytes of this process after a call."""
    environment = here()
    torch.set_num_threads(THREADS)
    case = next(c for c in cases(environment, [name]) if c.mode == mode and str(c.shape) == shape)
    comparison = case.benchmark.build(case.shape, environment, mode)
    MODES[mode](comparison.providers[provider], comparison.upstream)()
    print(json.dumps(resident_bytes()))


if __name__ == "__main__":
    main(*sys.argv[1:])
