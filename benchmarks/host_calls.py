"""What the host's time is measured of: providers of one thing, on a pretended device whose launches return at once.

K, V and Q of one attention layer, by ``hyper_kv`` and ``hyper_qkv`` and as modules called one after another; one
launch, by a program and by hand; and steps of sampling with a UNet: bare, with ours, with hooks.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

import hnkernels as hn
from benchmarks.baselines import patch, remover
from benchmarks.measuring import Timings
from benchmarks.rows import Environment
from benchmarks.shapes import NARROW_UNET
from hnkernels.adapter.layers import find_attention

HERE = Environment("cpu", "fp32")

_LEAST_ROUNDS = 20
_CALLS, _LAUNCHES = 10, 500
"""That make one sample."""

LAYERS = {"attn1": 16, "attn2": 16}
"""Of the UNet, which has the structure of Stable Diffusion 1.5's."""

_TIMESTEPS = range(999, 0, -50)
"""Of the 20 steps of a sampling run; after the last one the next run begins."""

UNETS = 6
"""That are measured one after another."""

_WARM, _STEPS = 3, 7
"""Steps after something was put on the UNet that are not timed, and that are."""

Off = Callable[[], object]
"""Takes off what was put on."""


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
        """Of this thread on its processor, per run: what else the machine does is not our cost."""
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


def inference(width: int, layer_norm: bool, query: bool) -> dict[str, HostProvider]:
    """Both for one token; to be run without gradients."""
    x, mlps, linears = _layer(width, layer_norm, query)
    for mlp in mlps:
        mlp.eval().requires_grad_(False)
    return {
        "ours": HostProvider(partial(_ours, x, mlps, linears, query), batch=_CALLS),
        "modules": HostProvider(partial(_as_modules, x, mlps, linears), batch=_CALLS),
    }


def training(width: int, layer_norm: bool, query: bool) -> dict[str, HostProvider]:
    """Both for one token, forward and backward."""
    x, mlps, linears = _layer(width, layer_norm, query)
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
    x, mlps, linears = _layer(width, layer_norm, query)
    for mlp in mlps:
        mlp.eval().requires_grad_(False)
    function = hn.hyper_qkv if query else hn.hyper_kv
    return HostProvider(partial(function, x, *mlps, *[linear.weight for linear in linears]))


def _layer(width: int, layer_norm: bool, query: bool) -> tuple[Tensor, list[hn.HypernetworkMLP], list[nn.Linear]]:
    """One token, the MLPs for K and V in training mode, and the frozen projections: Q if it is asked for, K and V."""
    config = hn.MLPConfig(layer_norm=layer_norm)
    mlps = [hn.HypernetworkMLP(width, config) for _ in "kv"]
    linears = [nn.Linear(width, width, bias=False).requires_grad_(False) for _ in range(2 + query)]
    return torch.randn(1, 1, width), mlps, linears


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


class Model:
    """The UNet, its input, and what can be put on it; to be run without gradients."""

    def __init__(self) -> None:
        self._unet = NARROW_UNET.build(HERE)
        found = [spec.kind for spec in find_attention(self._unet)]
        assert {kind: found.count(kind) for kind in found} == LAYERS
        self._call = {**NARROW_UNET.inputs(HERE), "return_dict": False}
        del self._call["timestep"]  # another one at every step
        relu, affine = (
            hn.Hypernetwork(NARROW_UNET.sizes, activation=activation).eval().requires_grad_(False)
            for activation in ("relu", None)
        )
        mlps, folded = (nn.ModuleDict({str(n): nn.ModuleList(net[n]) for n in net}) for net in (relu, affine))
        weights = _weights(self._unet)
        self.ours: dict[str, Callable[[nn.Module], Off]] = {
            "bare": _nothing,
            "kept": partial(_attach, net=relu, targets=["attn2"]),
            "self-attention": partial(_attach, net=relu, targets=["attn1"]),
            "all": partial(_attach, net=relu),
            "fused": partial(_attach, net=affine, fused=True),
            "generated": partial(_attach, net=weights),
        }
        self.others: dict[str, Callable[[nn.Module], Off]] = {
            "bare again": _nothing,
            "kept, hooks": partial(patch, mlps=mlps, targets=("attn2",)),
            "self-attention, hooks": partial(patch, mlps=mlps, targets=("attn1",)),
            "all, hooks": partial(patch, mlps=mlps),
            "fused, hooks": partial(patch, mlps=folded),
            "generated, hooks": partial(_hook_weights, weights=weights),
        }

    def calls(self, put: Callable[[nn.Module], Off]) -> int:
        """Calls of functions of a step with this on the UNet."""
        off, step = put(self._unet), self._step()
        step.warm(_WARM)
        calls = step.calls()
        off()
        return calls

    def seconds(self, put: Callable[[nn.Module], Off]) -> list[float]:
        """Of some steps with this on the UNet."""
        off, step = put(self._unet), self._step()
        step.warm(_WARM)
        seconds = [step.seconds() for _ in range(_STEPS)]
        off()
        return seconds

    def _step(self) -> HostProvider:
        timesteps = cycle([torch.tensor(t) for t in _TIMESTEPS])
        return HostProvider(lambda: self._unet(timestep=next(timesteps), **self._call)[0])


def ratios(seconds: float) -> dict[str, float]:
    """What a step takes with everything that can be put on the UNet, as a multiple of what it takes without.

    Medians over many turns, in random order. Everything is put on one and the same UNet, for where a copy lies in
    memory makes more of a difference than a percent; for the same reason several UNets are made, one after another, and
    what counts is the mean of their medians. Every turn is compared with the steps right before and after it, for how
    fast a processor is changes by more than a percent within seconds. ``"bare again"``, with nothing on it, shows the
    noise.
    """
    each = [_ratios(Model(), seconds / UNETS, random.Random(number)) for number in range(UNETS)]
    return {name: fmean(found[name] for found in each) for name in each[0]}


def _ratios(model: Model, seconds: float, orders: random.Random) -> dict[str, float]:
    puts = {**model.ours, **model.others}
    bare = puts.pop("bare")
    found: dict[str, list[float]] = {name: [] for name in puts}
    started = time.perf_counter()
    before = median(model.seconds(bare))
    while time.perf_counter() - started < seconds:
        for name in orders.sample(list(puts), len(puts)):
            between = median(model.seconds(puts[name]))
            after = median(model.seconds(bare))
            found[name].append(2 * between / (before + after))
            before = after
        gc.collect()
    return {name: median(turns) for name, turns in found.items()}


def _weights(unet: nn.Module) -> hn.GeneratedWeights:
    """One set of rank 4 for every projection of attention."""
    net = hn.WeightHypernetwork(["attn1", "attn2"], embedding_dim=8, hidden_dim=8, rank=4, model=unet).eval()
    with torch.no_grad():
        return net.generate_weights(torch.randn(1, 8)).detach()


def _nothing(unet: nn.Module) -> Off:
    return lambda: None


def _attach(unet: nn.Module, net: Any, targets: Sequence[str] = ("attn1", "attn2"), fused: bool = False) -> Off:
    if isinstance(net, hn.GeneratedWeights):
        return hn.attach(unet, net).detach
    adapter = hn.attach(unet, net, targets=targets)
    if fused:
        adapter.fuse()
    return adapter.detach


def _hook_weights(unet: nn.Module, weights: hn.GeneratedWeights) -> Off:
    """Two einsums after every linear."""
    handles = []
    for layer in weights.layers:
        adding = partial(_adding, *weights.factors(layer.name))
        handles.append(unet.get_submodule(layer.name).register_forward_hook(adding))
    return remover(handles)


def _adding(a: Tensor, b: Tensor, module: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:
    return y + torch.einsum("gtr,gnr->gtn", torch.einsum("gtd,grd->gtr", args[0], a), b)
