"""Many cases of one target, and what became of them."""

from __future__ import annotations

import dis
import itertools
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

import hnkernels
from tests.fuzz import guards

_OURS = str(Path(hnkernels.__file__).parent)
_RAISE = dis.opmap["RAISE_VARARGS"]
_IMPORTS = 30
_LONGEST = 2000
MOST_MEMORY = 256 << 20
"""Bytes by which one case may raise the process's peak."""


def _nothing(*_: Any) -> None:
    """Looks at nothing."""


@dataclass(frozen=True)
class Target:
    """A boundary at which the library takes what others made.

    Attributes:
        draw: makes a case.
        run: what the library makes of a case, once ``prepare`` is done.
        refusals: the exceptions with which it may refuse one.
        prepare: what has to be there first (files, say) and is not watched: case → argument of ``run``.
        check: raises where a case was accepted and the result is wrong.
    """

    draw: Callable[[Random], Any]
    run: Callable[[Any], Any]
    refusals: tuple[type[Exception], ...]
    prepare: Callable[[Any], Any] = lambda case: case
    check: Callable[[Any, Any], None] = _nothing


@dataclass
class Figures:
    """What became of the cases of a target."""

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[Any, str]] = field(default_factory=list)
    slowest: float = 0.0
    slowest_case: Any = None

    @property
    def cases(self) -> int:
        return self.accepted + self.refused.total() + len(self.failed)


def case(target: Target, seed: int, number: int) -> Any:
    """Case ``number`` of a seed, the same every time."""
    return target.draw(Random(f"{seed}.{number}"))


def run(target: Target, cases: Iterable[Any], seconds: float = 1.0) -> Figures:
    """Runs cases one after another.

    Args:
        target: which.
        cases: what its ``draw`` makes.
        seconds: CPU time that one may take.
    """
    figures = Figures()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in cases:
            attempt(target, one, figures, seconds)
    return figures


def attempt(target: Target, one: Any, figures: Figures, seconds: float = 1.0) -> None:
    """Runs one case and counts it."""
    outcome = _once(target, one, seconds)
    if outcome.events or outcome.hangs:  # the first case that needs a module imports it: that runs code and takes time
        _once(target, one, _IMPORTS * seconds)
        outcome = _once(target, one, seconds)
    if outcome.elapsed > figures.slowest:
        figures.slowest, figures.slowest_case = outcome.elapsed, one
    if outcome.fault is not None:
        figures.failed.append((one, outcome.fault))
    elif outcome.refusal is not None:
        figures.refused[outcome.refusal] += 1
    else:
        figures.accepted += 1


@dataclass
class _Outcome:
    fault: str | None = None
    refusal: str | None = None
    events: list[str] = field(default_factory=list)
    hangs: bool = False
    elapsed: float = 0.0


def _once(target: Target, one: Any, seconds: float) -> _Outcome:
    outcome, result, raised = _Outcome(), None, None
    argument = target.prepare(one)
    before, started = guards.peak(), time.process_time()
    with guards.forbidding() as outcome.events:
        try:
            with guards.limited(seconds):
                result = target.run(argument)
        except guards.Hang:
            outcome.hangs, outcome.fault = True, f"takes more than {seconds} s"
        except Exception as error:
            raised = error
    outcome.elapsed, grown = time.process_time() - started, guards.peak() - before
    if isinstance(raised, target.refusals):
        outcome.refusal = type(raised).__name__
        if not raised_here(raised.__traceback__):
            outcome.fault = "is refused by accident:\n" + _trace(raised)
        elif not str(raised).strip() or len(str(raised)) > _LONGEST:
            outcome.fault = f"is refused with {len(str(raised))} characters: {str(raised)[:200]}"
    elif raised is not None:
        outcome.fault = "raises what it may not:\n" + _trace(raised)
    if outcome.events:
        outcome.fault = f"runs {', '.join(outcome.events[:3])}"
    elif grown > MOST_MEMORY:
        outcome.fault = f"takes {grown >> 20} MiB"
    elif outcome.fault is None and outcome.refusal is None:
        try:
            target.check(one, result)
        except Exception as error:
            outcome.fault = "gives a wrong result:\n" + _trace(error)
    return outcome


def raised_here(trace: TracebackType | None) -> bool:
    """Whether an exception comes from a ``raise`` of the library, not from an operation that failed inside of it."""
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return code.co_filename.startswith(_OURS) and code.co_code[trace.tb_lasti] == _RAISE


def numbered(target: Target, seed: int, first: int, count: int) -> Iterable[Any]:
    """Cases of a seed."""
    return (case(target, seed, number) for number in itertools.islice(itertools.count(first), count))


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error, limit=-4, chain=False))[-1500:]
