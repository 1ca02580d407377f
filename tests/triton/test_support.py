"""Which backend ``"auto"`` takes, and what ``backend="triton"`` says where it cannot run."""

from __future__ import annotations

import pytest
import torch

from hnkernels.triton import support
from tests.models import make_mlp


@pytest.fixture
def compiled(monkeypatch):
    """A process in which kernels are compiled, not interpreted."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(support, "HAS_TRITON", True)


@pytest.mark.parametrize(
    ("capability", "fault"), [((7, 5), "compute capability below 8.0"), ((8, 0), None), ((9, 0), None), ((12, 0), None)]
)
def test_cuda_from_compute_capability_8(compiled, monkeypatch, capability, fault):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.version, "hip", None)
    reason = support._device_fault(torch.device("cuda", 0))
    assert reason is None if fault is None else fault in reason


def test_rocm_and_xpu(compiled, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert support._device_fault(torch.device("cuda", 0)) is None
    assert support._device_fault(torch.device("xpu", 0)) is None


def test_other_devices_take_the_portable_backend(compiled):
    assert "set TRITON_INTERPRET=1" in support._device_fault(torch.device("cpu"))
    assert "no backend for mps tensors" in support._device_fault(torch.device("mps"))


def test_the_interpreter_takes_cpu_tensors_and_no_others(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(support, "HAS_TRITON", True)
    assert support._device_fault(torch.device("cpu")) is None
    assert "takes CPU tensors" in support._device_fault(torch.device("cuda", 0))


def test_without_triton_nothing_runs_on_it(monkeypatch):
    monkeypatch.setattr(support, "HAS_TRITON", False)
    assert support.why_not(torch.ones(2, 8), []) == "Triton is not installed"


@pytest.mark.parametrize(
    ("dtype", "autocast", "fits"),
    [(torch.float16, None, True), (torch.bfloat16, None, True), (torch.float32, None, True),
     (torch.float64, None, False), (torch.float32, torch.bfloat16, True), (torch.float64, torch.bfloat16, False)],
)  # fmt: skip
def test_dtypes(dtype, autocast, fits):
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        assert (support._dtype_fault(torch.ones(2, 8, dtype=dtype)) is None) == fits


def test_networks():
    assert support.mlp_fault(make_mlp(8, activation="gelu", layer_norm=True)) is None
    assert support.mlp_fault(make_mlp(8, activation=None)) is None
    assert "'rrelu' has no device code" in support.mlp_fault(make_mlp(8, activation="rrelu"))
    softmax = make_mlp(8, activation="softmax", allow_legacy_activations=True)
    assert "'softmax' has no device code" in support.mlp_fault(softmax)
    assert support.mlp_fault(make_mlp(8, activation="rrelu", layer_structure=(1, 1))) is None  # which is nowhere then
