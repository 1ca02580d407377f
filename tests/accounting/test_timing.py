"""Both sides are timed in turns, on values that no network loses."""

import pytest
import torch

import hnkernels as hn
from hnkernels.accounting import timing
from hnkernels.accounting.timing import measure


@pytest.fixture
def mlps():
    return hn.Hypernetwork((16,), activation="silu")[16]


@pytest.mark.parametrize("train", [False, True])
def test_both_sides_are_timed(mlps, train):
    before = [p.clone() for mlp in mlps for p in mlp.parameters()]
    ours, eager = measure(mlps, 10, 12, train=train, dtype=torch.float32, device="cpu", rounds=3)
    assert ours > 0
    assert eager > 0
    assert all(torch.equal(a, b) for a, b in zip(before, (p for m in mlps for p in m.parameters()), strict=True))


def test_they_take_turns(mlps, monkeypatch):
    times = iter([1.0, 10.0, 3.0, 30.0, 2.0, 20.0])
    monkeypatch.setattr(timing, "_seconds", lambda run, device: next(times))
    assert measure(mlps, 10, 12, dtype=torch.float32, device="cpu", rounds=3) == (2.0, 20.0)


def test_too_little_memory_is_said(mlps, monkeypatch):
    def fails(*given):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(timing, "_seconds", fails)
    with pytest.raises(ValueError, match="cpu has too little memory for 10 tokens; give fewer"):
        measure(mlps, 10, 12, dtype=torch.float32, device="cpu")
