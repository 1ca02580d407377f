"""Ways to do one thing side by side: the processor time of each, by turns, and how many functions it calls."""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.timing import Comparison
from hnkernels.triton.testing import pretend_device

TARGET = "sm_90"

_LEAST_ROUNDS = 20


@dataclass(frozen=True)
class Side:
    """One way to do it.

    Attributes:
        run: does it once.
        prepare: is called before every run, and not timed.
        batch: runs that make one sample; many, where one is not much longer than reading the clock.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    batch: int = 1

    def seconds(self) -> float:
        """Of this thread on its processor, per run: what else the machine does is no cost of ours."""
        run, runs = self.run, range(self.batch)
        if self.prepare is None:
            started = time.thread_time_ns()
            for _ in runs:
                run()
            return (time.thread_time_ns() - started) / self.batch / 1e9
        taken = 0
        for _ in runs:
            self.prepare()
            started = time.thread_time_ns()
            run()
            taken += time.thread_time_ns() - started
        return taken / self.batch / 1e9

    def calls(self) -> int:
        """Functions that a run calls, in Python and in C. Exact, once everything is warm."""
        if self.prepare is not None:
            self.prepare()
        made: list[str] = []  # an object: Python 3.10 puts back what this frame's variables were before the last call

        def note(frame: Any, event: str, argument: Any) -> None:
            if event in ("call", "c_call"):
                made.append(event)

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            self.run()
        finally:
            sys.setprofile(before)
        return len(made) - 1  # the last one is that of setprofile

    def warm(self, runs: int = 3) -> None:
        """Lets it compile, plan and fill its caches."""
        for _ in range(runs):
            if self.prepare is not None:
                self.prepare()
            self.run()


def compare(sides: Mapping[str, Side], seconds: float) -> Comparison:
    """Times every side once a round, for so long.

    The order changes from round to round, and every second one goes back through the one before: no side always comes
    after the same other one, whose traces in the caches it would meet, and of two either is first as often.
    """
    for side in sides.values():
        side.warm()
    found: dict[str, list[float]] = {name: [] for name in sides}
    order, orders = list(sides), random.Random(0)
    started, rounds = time.perf_counter(), 0
    while rounds < _LEAST_ROUNDS or rounds % 2 or time.perf_counter() - started < seconds:
        if rounds % 2:
            order.reverse()
        else:
            orders.shuffle(order)
        for name in order:
            found[name].append(sides[name].seconds())
        rounds += 1
    return Comparison(found)


@contextmanager
def host_alone() -> Iterator[None]:
    """Within it kernels cost nothing and nothing else gets in the way: one thread, no garbage collector.

    Raises:
        ValueError: see ``pretend_device``.
    """
    with pretend_device(TARGET, poison=False):
        threads, collecting = torch.get_num_threads(), gc.isenabled()
        torch.set_num_threads(1)
        # What kernels should have written is whatever lay there, and PyTorch's own operations are slow on denormals.
        torch.set_flush_denormal(True)
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)
            if collecting:
                gc.enable()
