"""Where benchmarks run: the device, the dtype, what hnkernels takes there, what the machine can do at best; and clocks.

Two or more providers of one thing are timed fairly on a machine that is not quiet: in turn (``interleave``)."""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.rows import Row
from hnkernels.triton.support import HAS_TRITON, interpreting

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
THREADS = 2
"""On a CPU; what the table was measured with can be had on any machine."""

Runs = Sequence[Callable[[], object]]
"""The same call on several copies of its data; a GPU takes them in turn, so that its cache holds none of them."""

COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Bytes: many times what any cache holds."""

SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the matrices."""


@dataclass(frozen=True)
class Environment:
    """A device to run on.

    Attributes:
        kind: ``"cpu"``, ``"cuda"``, or ``"interpreter"``: CPU tensors, with the kernels in Triton's interpreter.
        dtype: of the networks and their inputs: a key of ``DTYPES``.
    """

    kind: str
    dtype: str

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.kind == "cuda" else "cpu")

    @property
    def library(self) -> str:
        """The provider that ``backend="auto"`` is here."""
        return "portable" if self.kind == "cpu" else "triton"

    @property
    def name(self) -> str:
        """Of the folder for its results: ``"amd-epyc-2-threads"``, ``"nvidia-h100-80gb-hbm3"``."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.machine.lower()).split())

    @property
    def machine(self) -> str:
        """What its maker calls it; of a CPU with the threads that are used."""
        return torch.cuda.get_device_name() if self.kind == "cuda" else f"{_cpu()}, {THREADS} threads"

    def tensor(self, *shape: int, scale: float = 1.0, grad: bool = False) -> Tensor:
        """Normally distributed numbers."""
        values = torch.randn(shape, device=self.device) * scale
        return values.to(DTYPES[self.dtype]).requires_grad_(grad)


def here(device: str = "cpu", dtype: str | None = None) -> Environment:
    """The environment that a command is to run in.

    Raises:
        ValueError: there is no such device here, or the dtype is unknown.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is unknown; accepted are cpu and cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device 'cuda' was asked for and PyTorch finds no CUDA or ROCm device here; `make bench` runs on the CPU"
        )
    if device == "cuda" and interpreting():
        raise ValueError("TRITON_INTERPRET=1 is set, and the interpreter takes CPU tensors; unset it to run on a GPU")
    dtype = dtype or ("fp16" if device == "cuda" else "fp32")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; accepted are {', '.join(DTYPES)}")
    return Environment("interpreter" if device == "cpu" and interpreting() else device, dtype)


def versions() -> str:
    """Of what the figures depend on: ``"hnkernels 0.1.0, torch 2.13.0+cpu, triton 3.9.0, Python 3.11.9"``."""
    import hnkernels

    words = [f"hnkernels {hnkernels.__version__}", f"torch {torch.__version__}"]
    words += [f"triton {version('triton')}"] if HAS_TRITON else []
    return ", ".join([*words, f"Python {platform.python_version()}"])


def today() -> str:
    return date.today().isoformat()


def _cpu() -> str:
    """The model's name where the system tells it, else the architecture's."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"{platform.machine()} CPU"


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
