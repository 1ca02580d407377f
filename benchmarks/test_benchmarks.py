"""The same benchmarks for pytest: ``pytest benchmarks -k "lowrank and inference"``, with pytest-benchmark's tables.

pytest-benchmark times one function after the other. Here the providers of a case are timed in turn beforehand, round
by round, and pytest-benchmark is given a clock that runs as they did. As in tests/, ``HNKERNELS_TEST_DEVICE=cuda`` goes
to the GPU.
"""

from __future__ import annotations

import os
from functools import lru_cache

import pytest
import torch

from benchmarks.cases import Case, cases
from benchmarks.measuring import Measurement, measure
from benchmarks.rows import THREADS, here

HERE = here(os.environ.get("HNKERNELS_TEST_DEVICE", "cpu"))

_now = 0.0


def replayed() -> float:
    """The clock that pytest-benchmark reads: the seconds of the rounds that it was told of."""
    return _now


@lru_cache(maxsize=1)  # the tests of a case follow one another, and the next case needs the memory
def _measured(case: Case) -> Measurement:
    if HERE.kind != "cuda":
        torch.set_num_threads(THREADS)
    return measure(case, HERE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every case and provider."""
    pairs = [(case, provider) for case in cases(HERE) for provider in case.benchmark.providers]
    metafunc.parametrize(("case", "provider"), pairs, ids=[f"{case.name}-{provider}" for case, provider in pairs])


@pytest.mark.benchmark(timer=replayed, warmup=False)
def test_benchmark(case: Case, provider: str, benchmark) -> None:
    """A provider of a case: right, then timed."""
    measurement = _measured(case)
    if provider not in measurement.timings.seconds and provider not in measurement.verdicts:
        pytest.skip(measurement.absent.get(provider, "not part of this case"))
    verdict = measurement.verdicts.get(provider)
    assert verdict is None or verdict.green, f"its error is {verdict.error:.1e}, above {verdict.allowed:.1e}; not timed"
    rounds = iter(measurement.timings.seconds[provider])

    def one_round() -> None:
        global _now
        _now += next(rounds)

    benchmark.group = case.name
    benchmark.pedantic(one_round, rounds=len(measurement.timings.seconds[provider]))
