"""What a benchmark is, and the list of them all.

A benchmark is a function from a shape, a place and a mode to *ways*: the providers that do the same thing each in its
own manner. ``modes.py`` makes a timed call of a way, ``checking.py`` compares its results with the truth,
``measuring.py`` times the ways side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.place import Place

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
class Way:
    """One provider's manner of doing it.

    Attributes:
        run: does it and returns what came out: a tensor or several.
        leaves: what takes gradients, in the same order for every way.
    """

    run: Callable[[], Any]
    leaves: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Sides:
    """The ways side by side, on the same numbers.

    Attributes:
        ways: provider → way.
        truth: the same in float64, which the ways are held to. Without one they are held to the reference's.
        upstream: the gradients of the results, where there is a backward pass.
        unchecked: ways that are to give something else, such as the model without a hypernetwork.
        absent: provider → why it cannot run here.
        allowed: relative error, in place of what ``checking.py`` says.
        least: FLOPs and bytes that no way can do without, where they are known.
    """

    ways: Mapping[str, Way]
    truth: Way | None = None
    upstream: Sequence[Tensor] = ()
    unchecked: Sequence[str] = ("bare",)
    absent: Mapping[str, str] = field(default_factory=dict)
    allowed: float | None = None
    least: tuple[int, int] | None = None


Build = Callable[[Any, Place, str], Sides]


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A registered benchmark.

    Attributes:
        name: what is done.
        build: makes the ways.
        modes: what of it is timed; keys of ``modes.MODES``.
        providers: the names of all ways that there may be, the one that the others are compared with first.
        shapes: kind of place → shapes, of which ``str`` is the name.
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


def cases(place: Place, names: Sequence[str] = ()) -> list[Case]:
    """The cases at a place, of the named benchmarks or of all.

    Raises:
        ValueError: a name is unknown.
    """
    import benchmarks.suites  # noqa: F401  registers them

    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; the benchmarks are {', '.join(BENCHMARKS)}")
    chosen = [BENCHMARKS[name] for name in names or BENCHMARKS]
    return [Case(b, mode, shape) for b in chosen for shape in b.shapes.get(place.kind, ()) for mode in b.modes]
