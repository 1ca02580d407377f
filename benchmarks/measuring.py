"""A case from its providers to its rows: build, check, time what is right; on a GPU as CUDA graphs too.

Providers of one thing are timed fairly on a machine that is not quiet: in turn (``interleave``).
"""

from __future__ import annotations

import gc
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.cases import MODES, Call, Case, Comparison, Verdict, cases, largest_error, verdicts
from benchmarks.rows import THREADS, Environment, Row, here

COPIES, UNCACHED = 4, 1 << 28
"""Of the data on a GPU, used in turn, as its cache may hold one; unless one has more bytes than any cache."""

ROUNDS, MOST_ROUNDS = {"cuda": 5, "interpreter": 1}, 60
"""On a GPU each is a median already; in the interpreter nothing is learnt from times."""

COPIED, SIDE = {"cpu": 1 << 28, "cuda": 1 << 30}, {"cpu": 2048, "cuda": 8192}
"""What the ceilings are measured on: bytes, many times what any cache holds; the side of the matrices."""

WARMUP = 3

SAME = 1e-2
"""Relative error between a call and its replay: a vendor's kernels may add up in another order, nothing more."""

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


def clock(environment: Environment, calls: int = 1) -> Callable[[Runs], float]:
    """What takes the time of a call there, of which so many make up a figure."""
    if environment.kind != "cuda":
        return cpu_seconds
    return cuda_seconds if calls == 1 else cuda_wall_seconds


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
            if rounds > least and calls == 1:  # such a short round is still warming up; the check was not a round
                found = {name: [] for name in providers}
                rounds += 1
    return Timings(found)


def ceilings(environment: Environment, seconds: float = 4.0) -> list[Row]:
    """Bandwidth, every byte read and every byte written, and rate of a square GEMM, a multiply-add as two."""
    size, side = COPIED[environment.kind], SIDE[environment.kind]
    source = environment.tensor(size // environment.tensor(0).element_size())
    target, a, b = source.clone(), environment.tensor(side, side), environment.tensor(side, side)
    work = {"copy": (2 * size, "bandwidth", "B/s"), "gemm": (2 * side**3, "rate", "FLOP/s")}
    runs = {"copy": [lambda: target.copy_(source)], "gemm": [lambda: a @ b]}
    timings = interleave(runs, seconds, most=20, clock=clock(environment))
    rows = []
    for name, (amount, quantity, unit) in work.items():
        low, high = timings.quartiles(name)
        what = ("measured", "ceiling", name, "large", environment.dtype, "torch", quantity)
        median, samples = amount / timings.median(name), len(timings.seconds[name])
        rows.append(Row(*what, median, unit, low=amount / high, high=amount / low, samples=samples))
    return rows


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
    if environment.library != "triton" and "triton" in benchmark.providers:
        left_out["triton"] = "needs a GPU, or TRITON_INTERPRET=1"
    for comparison in comparisons:
        for name in benchmark.providers:
            if name in comparison.providers and name not in left_out:
                calls.setdefault(name, []).append(MODES[case.mode](comparison.providers[name], comparison.upstream))
    judged, faults = verdicts(case, environment, comparisons[0], {name: copies[0] for name, copies in calls.items()})
    absent = {**comparisons[0].absent, **left_out, **faults}
    right = {
        name: copies
        for name, copies in calls.items()
        if name not in faults and (name not in judged or judged[name].green)
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
            clock=clock(environment, benchmark.calls),
        )
    least = comparisons[0].least
    del comparisons, comparison, calls, right, timed
    gc.collect()
    if benchmark.resident and environment.kind == "cpu":
        what = ("benchmarks.measuring", benchmark.name, case.mode, str(case.shape))
        peaks = {name: resident_peak(*what, name) for name in timings.seconds}
    return Measurement(case, timings, judged, absent, peaks, least)


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


def resident_peak(module: str, *arguments: str) -> int:
    """Peak resident bytes of a fresh process that runs a module, which prints them last."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return int(done.stdout.splitlines()[-1])


def resident_bytes() -> int:
    """The most that this process has held so far; Linux only.

    Not ``getrusage``: its figure starts from that of the parent process, which may be large.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(name: str, mode: str, shape: str, provider: str) -> None:
    """Prints the peak resident bytes of this process after one call of one provider and nothing else; Linux only."""
    environment = here()
    torch.set_num_threads(THREADS)
    case = next(c for c in cases(environment, [name]) if c.mode == mode and str(c.shape) == shape)
    comparison = case.benchmark.build(case.shape, environment, mode)
    MODES[mode](comparison.providers[provider], comparison.upstream)()
    print(resident_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
