"""A case is built, checked and timed; what is wrong has no time, what cannot run says why."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.cases import MODES, Benchmark, Case, Comparison, Provider, benchmark, cases, check, has_backward
from benchmarks.measuring import measure
from benchmarks.rows import Environment, here
from hnkernels.triton.support import interpreting

CPU = Environment("cpu", "fp32")
INTERPRETER = Environment("interpreter", "fp32")


def case_of(providers: dict[str, Provider], mode: str = "inference", **options) -> Case:
    """A case that is not registered."""
    made = Benchmark(
        "test", lambda *_: Comparison(providers, **options), (mode,), tuple(providers), {"cpu": ("shape",)}, rounds=2
    )
    return Case(made, mode, "shape")


def fails() -> torch.Tensor:
    raise RuntimeError("no kernel for this\nand much more")


def test_a_provider_that_is_wrong_is_not_timed():
    x = torch.ones(3)
    providers = {
        "right": Provider(lambda: 2 * x),
        "also right": Provider(lambda: x + x),
        "wrong": Provider(lambda: 2.001 * x),
    }
    measurement = measure(case_of(providers, truth=Provider(lambda: 2 * x.double())), CPU, seconds=0)
    assert set(measurement.timings.seconds) == {"right", "also right"}
    assert not measurement.verdicts["wrong"].green
    quantities = {(row.provider, row.quantity) for row in measurement.rows(CPU)}
    assert ("wrong", "error") in quantities
    assert ("wrong", "time") not in quantities


@pytest.mark.parametrize("bad", [torch.full((3,), float("nan")), torch.ones(2), torch.ones(3, 1)])
def test_nan_and_other_shapes_are_wrong(bad):
    verdict = check({"bad": [bad]}, [torch.ones(3)], "bad", 0.0, 0.1)["bad"]
    assert not verdict.green


def test_what_is_nothing_but_rounding_is_not_held_against_anybody():
    truth = [torch.ones(4), torch.full((4,), 1e-9)]
    assert check({"a": [truth[0], truth[1] * 3]}, truth, "a", 1e-5, 1e-5)["a"].green
    assert not check({"a": [truth[0], truth[1] + 1e-6]}, truth, "a", 1e-5, 1e-5)["a"].green
    assert check({"a": [torch.zeros(2)]}, [torch.zeros(2)], "a", 0.0, 0.0)["a"].green


def test_half_precision_is_held_to_the_baselines_own_error():
    truth = [torch.ones(4)]
    results = {name: [torch.full((4,), 1 + e)] for name, e in (("base", 0.01), ("as good", 0.011), ("worse", 0.013))}
    verdicts = check(results, truth, "base", 0.0, 0.1)
    assert [name for name, verdict in verdicts.items() if verdict.green] == ["base", "as good"]


def test_a_provider_that_does_something_else_is_timed_and_not_judged():
    x = torch.ones(3)
    providers = {"reference": Provider(lambda: 2 * x), "bare": Provider(lambda: x)}
    measurement = measure(case_of(providers), CPU, seconds=0)
    assert set(measurement.timings.seconds) == {"reference", "bare"}
    assert set(measurement.verdicts) == {"reference"}


def test_a_provider_that_cannot_run_says_why_and_the_others_are_timed():
    providers = {"reference": Provider(lambda: torch.ones(3)), "broken": Provider(fails)}
    measurement = measure(case_of(providers), CPU, seconds=0)
    assert set(measurement.timings.seconds) == {"reference"}
    assert measurement.absent["broken"] == "does not run: RuntimeError: no kernel for this"


def test_without_any_provider_that_runs_the_case_is_an_error():
    with pytest.raises(RuntimeError, match=r"test, inference, shape.*broken.*no kernel"):
        measure(case_of({"broken": Provider(fails)}), CPU, seconds=0)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_results_or_gradients(mode):
    x = torch.randn(3, requires_grad=True)
    call = MODES[mode](Provider(lambda: x.square(), [x]), [torch.ones(3)])
    (result,) = call()
    (again,) = call()
    torch.testing.assert_close(result, 2 * x if has_backward(mode) else x.square())
    torch.testing.assert_close(again, result)
    assert x.grad is None


def test_a_name_is_registered_once_and_unknown_names_are_refused():
    cases(CPU)
    with pytest.raises(ValueError, match="'projection' already"):
        benchmark("projection", modes=(), shapes={})(lambda *_: Comparison({}))
    with pytest.raises(ValueError, match=r"unknown: nonsense; the benchmarks are .*projection"):
        cases(CPU, ["nonsense"])


@pytest.mark.parametrize("kind", ["cpu", "cuda", "interpreter"])
def test_every_benchmark_names_modes_and_providers_that_exist(kind):
    environment = Environment(kind, "fp32")
    found = cases(environment)
    assert len({case.name for case in found}) == len(found)
    assert {case.mode for case in found} <= set(MODES)


@pytest.mark.skipif(interpreting(), reason="measures the portable backend's shapes")
@pytest.mark.parametrize("name", ["projection", "recompute", "affine", "lowrank", "cross-attention", "UNet call"])
def test_all_providers_agree_at_the_smallest_shapes(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    for case in cases(INTERPRETER, [name]):
        small = Case(case.benchmark, case.mode, case.shape)
        measurement = measure(small, CPU, seconds=0)
        assert not measurement.absent.keys() - {"triton", "compile"}
        assert all(verdict.green for verdict in measurement.verdicts.values()), measurement.verdicts
        assert measurement.timings.seconds.keys() >= {case.benchmark.providers[0], "portable"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "unknown: nonsense"),
        (["--device", "tpu"], "device 'tpu' is unknown; accepted are cpu and cuda"),
        (["--dtype", "fp8"], "dtype 'fp8' is unknown; accepted are fp32, fp16, bf16"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(arguments, message, capsys):
    pytest.importorskip("tqdm", reason="the benchmarks show their progress with it")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_report_without_a_gpu_says_what_to_do():
    with pytest.raises(ValueError, match="no CUDA or ROCm device here; `make bench` runs on the CPU"):
        here("cuda")


def test_pytest_shows_the_same_figures(tmp_path):
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "benchmarks", "-p", "no:xdist", "-p", "no:cacheprovider",
               "-k", "affine and 768", "-rs", f"--benchmark-json={tmp_path / 'out.json'}"]  # fmt: skip
    # A worker of pytest-xdist says so to all that it starts, and pytest-benchmark switches itself off there.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    assert "affine, inference, 768 x 77, affine" in done.stdout
    for provider in ("reference", "eager", "portable"):
        assert f"-{provider}]" in done.stdout
