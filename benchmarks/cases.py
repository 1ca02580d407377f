"""What a benchmark is, the list of them all, and what makes a provider's results right.

A benchmark is a function from a shape, an environment and a mode to a ``Comparison``: the providers that do the same
thing, each in its own manner. A ``Case`` is one mode of it at one shape. ``MODES`` makes a timed call of a provider,
``verdicts`` compares its results with the truth; ``measuring.py`` does both, and times the providers in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import Environment

PROVIDERS = {
    "bare": "the model or the linear without a hypernetwork",
    "reference": "the way the web UIs do it, in eager PyTorch",
    "eager": "the same algebra as the kernels', in eager PyTorch",
    "compile": "the reference under torch.compile",
    "portable": "hnkernels without Triton",
    "triton": "hnkernels' kernels",
}
"""The providers that most benchmarks have."""


@dataclass(frozen=True)
class Provider:
    """One manner of doing it.

    Attributes:
        run: does it and returns what came out: a tensor or several.
        leaves: what takes gradients, in the same order for every provider.
    """

    run: Callable[[], Any]
    leaves: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Comparison:
    """Providers side by side, on the same numbers.

    Attributes:
        providers: by name.
        truth: the same in float64, which they are held to. Without one they are held to the first provider.
        upstream: the gradients of the results, where there is a backward pass.
        unchecked: providers that are to give something else, such as the model without a hypernetwork.
        absent: name of a provider → why it cannot run here.
        allowed: relative error, in place of what ``verdicts`` takes otherwise.
        least: FLOPs and bytes that no provider can do without, where they are known.
    """

    providers: Mapping[str, Provider]
    truth: Provider | None = None
    upstream: Sequence[Tensor] = ()
    unchecked: Sequence[str] = ("bare",)
    absent: Mapping[str, str] = field(default_factory=dict)
    allowed: float | None = None
    least: tuple[int, int] | None = None


Build = Callable[[Any, Environment, str], Comparison]


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A registered benchmark.

    Attributes:
        name: what is done.
        build: makes the comparison.
        modes: what of it is timed; keys of ``MODES``.
        providers: the names of all that there may be, the one that the others are compared with first.
        shapes: kind of environment → shapes, of which ``str`` is the name.
        calls: calls that make up one figure, such as the steps of a sampling run.
        seconds: to spend on a case, about.
        rounds: least number of them.
        resident: whether peak memory is measured on a CPU too, in a process of its own for every provider.
    """

    name: str
    build: Build
    modes: Sequence[str]
    providers: Sequence[str]
    shapes: Mapping[str, Sequence[Any]]
    calls: int = 1
    seconds: float = 5.0
    rounds: int = 5
    resident: bool = False


@dataclass(frozen=True, eq=False)
class Case:
    """One mode of a benchmark at one shape."""

    benchmark: Benchmark
    mode: str
    shape: Any

    @property
    def name(self) -> str:
        return f"{self.benchmark.name}, {self.mode}, {self.shape}"


BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(
    name: str,
    *,
    modes: Sequence[str],
    shapes: Mapping[str, Sequence[Any]],
    providers: Sequence[str] = ("reference", "eager", "compile", "portable", "triton"),
    **options: Any,
) -> Callable[[Build], Build]:
    """Registers the decorated function as a benchmark; arguments as the fields of ``Benchmark``.

    Raises:
        ValueError: there is one of that name.
    """

    def register(build: Build) -> Build:
        if name in BENCHMARKS:
            raise ValueError(f"there is a benchmark {name!r} already; give this one another name")
        BENCHMARKS[name] = Benchmark(name, build, modes, providers, shapes, **options)
        return build

    return register


def cases(environment: Environment, names: Sequence[str] = ()) -> list[Case]:
    """The cases in an environment, of the named benchmarks or of all.

    Raises:
        ValueError: a name is unknown.
    """
    from benchmarks import layers, unets  # noqa: F401  they register themselves

    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; the benchmarks are {', '.join(BENCHMARKS)}")
    chosen = [BENCHMARKS[name] for name in names or BENCHMARKS]
    return [Case(b, mode, shape) for b in chosen for shape in b.shapes.get(environment.kind, ()) for mode in b.modes]


Call = Callable[[], list[Tensor]]
"""What is timed; returns what is checked."""


def _inference(provider: Provider, upstream: Sequence[Tensor]) -> Call:
    def call() -> list[Tensor]:
        with torch.no_grad():
            return _tensors(provider.run())

    return call


def _forward(provider: Provider, upstream: Sequence[Tensor]) -> Call:
    return lambda: _tensors(provider.run())


def _backward(provider: Provider, upstream: Sequence[Tensor]) -> Call:
    outputs = _tensors(provider.run())
    return lambda: list(torch.autograd.grad(outputs, provider.leaves, upstream, retain_graph=True))


def _both(provider: Provider, upstream: Sequence[Tensor]) -> Call:
    return lambda: list(torch.autograd.grad(_tensors(provider.run()), provider.leaves, upstream))


MODES: dict[str, Callable[[Provider, Sequence[Tensor]], Call]] = {
    "inference": _inference,
    "new prompt": _inference,
    "same prompt": _inference,
    "forward": _forward,
    "backward": _backward,
    "forward + backward": _both,
    "recompute": _both,
    "training step": _forward,
}
"""Those of one meaning differ in what their benchmark builds for them."""


def has_backward(mode: str) -> bool:
    """Whether gradients come out."""
    return MODES[mode] in (_backward, _both)


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


TOLERANCE = {False: 2e-6, True: 1e-5}
"""Relative Frobenius error that fp32 is allowed against float64: of results, of gradients."""

AGAINST_EAGER = 1.2
"""In any dtype as much is allowed as eager PyTorch's own error, times this."""

AT_MOST = {"fp32": 1e-2, "fp16": 1e-1, "bf16": 3e-1}
"""And never more than this, be eager PyTorch as wrong as it may. So large because of gradients: where rounding decides
on which side of a kink of relu a value is, one element of the gradient is there or not."""

MODEL_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Of a whole UNet's output between two orders of summation, where a float64 truth would take too long."""

VANISHING = 1e-3
"""What is smaller than the largest result by this is taken to be as large as that, since it may be nothing but
rounding: the gradient of the bias that a network adds to all keys of an attention layer, which softmax does not see."""


@dataclass(frozen=True)
class Verdict:
    """How wrong a provider is.

    Attributes:
        error: the largest relative Frobenius error of its results.
        allowed: the largest that is accepted.
    """

    error: float
    allowed: float

    @property
    def green(self) -> bool:
        return self.error <= self.allowed  # also false for nan


def check(
    results: Mapping[str, Sequence[Tensor]], truth: Sequence[Tensor], baseline: str, least: float, most: float
) -> dict[str, Verdict]:
    """A verdict on every provider: one that is wrong is not timed.

    Args:
        results: provider → what it computed.
        truth: what it should have.
        baseline: the provider whose own error is allowed to the others.
        least: error that is allowed in any case.
        most: error that is not.
    """
    errors = {name: largest_error(found, truth) for name, found in results.items()}
    allowed = max(least, min(AGAINST_EAGER * errors[baseline], most))
    return {name: Verdict(error, allowed) for name, error in errors.items()}


def verdicts(
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
        truth: Sequence[Tensor] = MODES[case.mode](comparison.truth, [t.double() for t in comparison.upstream])()
        least = TOLERANCE[has_backward(case.mode)] if environment.dtype == "fp32" else 0.0
    else:
        truth, least = results[baseline], MODEL_TOLERANCE[environment.dtype]
    least = least if comparison.allowed is None else comparison.allowed
    return check(judged, truth, baseline, least, AT_MOST[environment.dtype]), faults


def largest_error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Of the results, each relative to its norm; infinite where shapes or number differ."""
    if [t.shape for t in found] != [t.shape for t in truth]:
        return float("inf")
    norms = [t.detach().double().norm().item() for t in truth]
    least = VANISHING * max(norms, default=0.0) or 1.0
    return max(
        (
            (a.detach().double() - b.detach().double()).norm().item() / max(norm, least)
            for a, b, norm in zip(found, truth, norms, strict=True)
        ),
        default=0.0,
    )
