"""What every test starts from: the same seed and one thread, so that a failure is the same on every machine.

A test that needs a package which is not installed, and which the library does without, is skipped.

Tests that are marked ``on_device`` make their tensors on the default device. ``pytest --device cuda``, or
``HNKERNELS_TEST_DEVICE=cuda``, makes that a GPU and runs them alone: all others have their tensors on the CPU.
"""

import gc
import importlib.util
import os
from pathlib import Path

# Also of the processes that tests start: threads that wait for each other are slow where others want the cores too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from hnkernels.triton.support import interpreting

gc.disable()  # until all tests are there: none of what they import is garbage

if interpreting():
    from tests import fast_interpreter

    fast_interpreter.install()

# The cores of a CI machine are shared: a deadline would measure the neighbours.
settings.register_profile(
    "hnkernels", deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("hnkernels")

OPTIONAL = (
    *("diffusers", "transformers", "accelerate", "peft", "torchao", "tensorboard", "huggingface_hub", "yaml"),
    *("typer", "rich", "tqdm", "PIL", "matplotlib", "sklearn", "pytest_benchmark", "triton", "pandas", "psutil"),
)
"""Packages that tests import and that need not be there."""

LONG = (
    *("adapter/test_compile.py", "triton/test_compiled.py", "adapter/test_plans.py", "runs/test_runs.py"),
    *("adapter/test_weights_in_hosts.py", "benchmarks/test_gpu_check.py", "demo/test_tiny_sd.py"),
    *("training/test_never_lose.py", "adapter/test_lora.py", "benchmarks/test_measuring.py"),
    *("adapter/test_random_walk.py", "training/test_processes.py", "persistence/test_run_folder.py"),
    "cli/test_commands.py",
    *("training/test_trainer.py", "study/test_study.py", "integrations/test_webui_training.py"),
    *("triton/test_values.py", "ops/test_hyper.py", "triton/test_tiles.py", "triton/test_ready.py"),
    *("triton/test_operators.py", "triton/test_gradcheck.py", "triton/test_lowrank.py", "triton/test_adapter.py"),
    "ui/test_start_to_picture.py",
)
"""The files that take longest, in the run without the interpreter, in that with it, and in a browser."""

_TRITON = Path(__file__).parent / "triton"
_COMPILED, _GPU = _TRITON / "test_compiled.py", _TRITON / "test_gpu.py"


def pytest_addoption(parser):
    default = os.environ.get("HNKERNELS_TEST_DEVICE", "cpu")
    parser.addoption("--device", default=default, help="cpu (the default), or cuda: the tests of a device, on a GPU")


def pytest_collection_modifyitems(items):
    """Long files first: a process that gets one of them last works on while the others have nothing to do."""

    def place(item):
        path = item.path.as_posix()
        return next((place for place, name in enumerate(LONG) if path.endswith(name)), len(LONG))

    items.sort(key=place)


def pytest_collection_finish():
    """What is there now stays, so that the garbage collector need not walk through all of PyTorch again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish():
    """What is left ends with the process; pytest would look through it five times more."""
    gc.freeze()


def pytest_configure(config):
    config.addinivalue_line("markers", "on_device: makes its tensors on the default device, to run on a GPU too")
    device = config.getoption("--device")
    if device not in ("cpu", "cuda"):
        raise pytest.UsageError(f"--device {device!r} is unknown; accepted are cpu and cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: PyTorch finds no CUDA or ROCm device here")
    if device == "cuda" and interpreting():
        raise pytest.UsageError("--device cuda: TRITON_INTERPRET=1 is set, and the interpreter takes CPU tensors")
    if device == "cuda":  # deterministic algorithms, which fill memory that nobody wrote, ask it of cuBLAS
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_ignore_collect(collection_path, config):
    """The kernels run in the interpreter or on a GPU; they are compiled without either, and some tests need a GPU."""
    if collection_path.parent != _TRITON or not collection_path.name.startswith("test_"):
        return None
    if config.getoption("--device") != "cpu":
        return collection_path == _COMPILED
    return collection_path == _GPU or (collection_path == _COMPILED) == interpreting()


def _lacking(error):
    """Why there is no test to run, if it is for want of an optional package."""
    while error is not None:
        package = (getattr(error, "name", None) or "").split(".")[0]
        if isinstance(error, ModuleNotFoundError) and package in OPTIONAL and not importlib.util.find_spec(package):
            return f"needs {package}, which is not installed"
        error = error.__cause__ or error.__context__
    return None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    reason = report.failed and _lacking(report.call.excinfo.value)
    if reason:
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {reason}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    return (yield from _skipping_what_lacks())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from _skipping_what_lacks())


def _skipping_what_lacks():
    try:
        return (yield)
    except ImportError as error:
        reason = _lacking(error)
        if not reason:
            raise
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _default_device(request):
    device = request.config.getoption("--device")
    if device == "cpu":  # not even a mode that says so: calls of functions are counted
        yield
        return
    if request.node.get_closest_marker("on_device") is None:
        pytest.skip("is not marked on_device: its tensors are on the CPU")
    with torch.device(device):
        yield


@pytest.fixture(autouse=True)
def _onednn_at_test_sizes(monkeypatch):
    monkeypatch.setattr("hnkernels.ops.onednn.LEAST_ELEMENTS", 0)


@pytest.fixture(autouse=True)
def _reproducible():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
