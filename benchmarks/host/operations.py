"""What the host's time is measured of: providers of one thing, on a pretended device whose launches return at once.

Here are K, V and Q of one attention layer, by ``hyper_kv`` and ``hyper_qkv`` and as modules called one after another,
and one launch, by a program and by hand; ``unets.py`` has a whole UNet. ``compare`` times providers by turns.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import hnkernels as hn
from benchmarks.measuring import Timings
from hnkernels.triton.testing import pretend_device

TARGET = "sm_90"

_LEAST_ROUNDS = 20
_CALLS, _LAUNCHES = 10, 500
"""That make one sample."""


@dataclass(frozen=True)
class HostProvider:
    """One manner of doing it.

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


def compare(providers: Mapping[str, HostProvider], seconds: float) -> Timings:
    """Times every provider once a round, for so long.

    The order changes from round to round, and every second one goes back through the one before: no provider always
    comes after the same other one, whose traces in the caches it would meet, and of two either is first as often.
    """
    for provider in providers.values():
        provider.warm()
    found: dict[str, list[float]] = {name: [] for name in providers}
    order, orders = list(providers), random.Random(0)
    started, rounds = time.perf_counter(), 0
    while rounds < _LEAST_ROUNDS or rounds % 2 or time.perf_counter() - started < seconds:
        if rounds % 2:
            order.reverse()
        else:
            orders.shuffle(order)
        for name in order:
            found[name].append(providers[name].seconds())
        rounds += 1
    return Timings(found)


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


def inference(width: int, layer_norm: bool, query: bool) -> dict[str, HostProvider]:
    """Both for one token; to be run without gradients."""
    mlps, linears = _modules(width, layer_norm, query)
    for mlp in mlps:
        mlp.eval().requires_grad_(False)
    x = torch.randn(1, 1, width)
    return {
        "ours": HostProvider(partial(_ours, x, mlps, linears, query), batch=_CALLS),
        "modules": HostProvider(partial(_as_modules, x, mlps, linears), batch=_CALLS),
    }


def training(width: int, layer_norm: bool, query: bool) -> dict[str, HostProvider]:
    """Both for one token, forward and backward."""
    mlps, linears = _modules(width, layer_norm, query)
    x = torch.randn(1, 1, width)
    ones = [torch.ones(1, 1, width)] * 2

    def clear() -> None:
        for mlp in mlps:
            for parameter in mlp.parameters():
                parameter.grad = None

    def ours() -> None:
        torch.autograd.backward(_ours(x, mlps, linears, query)[-2:], ones)

    def as_modules() -> None:
        torch.autograd.backward(_as_modules(x, mlps, linears)[-2:], ones)

    return {"ours": HostProvider(ours, clear, _CALLS), "modules": HostProvider(as_modules, clear, _CALLS)}


def operation(width: int, layer_norm: bool, query: bool) -> HostProvider:
    """Ours alone, called as it is, so that nothing else is counted."""
    mlps, linears = _modules(width, layer_norm, query)
    for mlp in mlps:
        mlp.eval().requires_grad_(False)
    function = hn.hyper_qkv if query else hn.hyper_kv
    return HostProvider(partial(function, torch.randn(1, 1, width), *mlps, *[linear.weight for linear in linears]))


def _modules(width: int, layer_norm: bool, query: bool) -> tuple[list[hn.HypernetworkMLP], list[nn.Linear]]:
    """The MLPs for K and V, in training mode, and the frozen projections: Q if it is asked for, K and V."""
    config = hn.MLPConfig(layer_norm=layer_norm)
    linears = [nn.Linear(width, width, bias=False).requires_grad_(False) for _ in range(2 + query)]
    return [hn.HypernetworkMLP(width, config) for _ in range(2)], linears


def _ours(x: Tensor, mlps: list[hn.HypernetworkMLP], linears: list[nn.Linear], query: bool) -> tuple[Tensor, ...]:
    function = hn.hyper_qkv if query else hn.hyper_kv
    return function(x, *mlps, *[linear.weight for linear in linears])


def _as_modules(x: Tensor, mlps: list[hn.HypernetworkMLP], linears: list[nn.Linear]) -> tuple[Tensor, ...]:
    """The web UIs' way."""
    mlp_k, mlp_v = mlps
    *to_q, to_k, to_v = linears
    return (*[linear(x) for linear in to_q], to_k(mlp_k(x)), to_v(mlp_v(x)))


def launch() -> dict[str, HostProvider]:
    """One linear: as an operator runs its program, from where the pointers are known, and by hand.

    All of them allocate the output; by hand all the rest is ready.
    """
    from hnkernels.triton import direct  # Triton is optional
    from hnkernels.triton.ops.linear import linear
    from hnkernels.triton.program import Planned
    from hnkernels.triton.trace import Ref

    def operator(x: Tensor, w: Tensor) -> Tensor:
        return linear.function([x], [w], [], False)[0]

    width = 320
    x, w = torch.randn(1, width), torch.randn(width, width)
    planned = Planned(operator)
    planned(x, w)
    (program,) = planned.kept.programs.values()
    (bound,) = program._bound.values()
    assert bound is not None  # else launches would be Triton's own
    (step,) = program.layout.steps
    (buffer,), launch = step.allocate, step.what
    make = program.layout.make[buffer.slot]

    tensors = [x, w, make()]
    compiled = launch.run(tensors)
    ready = [launch.arguments[name] for name in direct.positional(launch.kernel)]
    ready = [v.of(tensors) if isinstance(v, Ref) else v for v in ready]
    ready = [v.data_ptr() if isinstance(v, Tensor) else v for v in ready]
    enter, function, metadata = direct.entry(compiled)
    stream = direct.stream_source()(0)
    by_hand = partial(enter, *launch.grid, stream, function, metadata, None, None, None, *ready)

    def allocate_and_launch() -> Tensor:
        y = make()
        by_hand()
        return y

    return {
        "program": HostProvider(partial(program.run, [x, w]), batch=_LAUNCHES),
        "bound": HostProvider(partial(bound.run, [x, w], [x.data_ptr(), w.data_ptr()]), batch=_LAUNCHES),
        "by hand": HostProvider(allocate_and_launch, batch=_LAUNCHES),
    }
