"""Values of calls whose plan is an earlier one's, and of those after something has changed under it."""

from __future__ import annotations

import pytest
import torch

from hnkernels.triton import allocation
from tests.host.changes import CHANGES, Call
from tests.models import FORWARD_TOLERANCE, GRADIENT_TOLERANCE, relative_error

NETS = {"relu": {}, "relu + LayerNorm": {"layer_norm": True}, "affine": {"activation": None}}


def worst(call: Call) -> float:
    """How far the kernels are from the portable backend, each of which may be as far from the truth as is allowed."""
    ours = call.run()
    call.options["backend"] = "portable"
    theirs = call.run()
    del call.options["backend"]
    return max(relative_error(a, b.detach()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_inference_follows(change, options):
    call = Call(query=True, dtype=torch.float32, **options)
    for _ in range(3):
        assert worst(call) < 2 * FORWARD_TOLERANCE
    change(call)
    for _ in range(2):
        assert worst(call) < 2 * FORWARD_TOLERANCE


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_training_follows(change):
    call = Call(training=True, dtype=torch.float32, layer_norm=True)
    for _ in range(3):
        assert worst(call) < 2 * FORWARD_TOLERANCE
    change(call)
    for _ in range(2):
        assert worst(call) < 2 * FORWARD_TOLERANCE
        gradients = []
        for backend in ("triton", "portable"):
            call.options["backend"] = backend
            for mlp in call.mlps:
                mlp.zero_grad()
            sum(t.sum() for t in call.run()).backward()
            gradients.append([p.grad for mlp in call.mlps for p in mlp.parameters()])
        del call.options["backend"]
        for ours, theirs in zip(*gradients, strict=True):
            assert relative_error(ours, theirs) < 2 * GRADIENT_TOLERANCE


def test_contexts_of_every_layout_and_number_of_dimensions():
    call = Call(dtype=torch.float32)
    for x in (torch.randn(5, 64), torch.randn(2, 3, 64), torch.randn(2, 2, 2, 64), torch.randn(64, 6).t()):
        call.x = x
        for _ in range(3):
            assert worst(call) < 2 * FORWARD_TOLERANCE


def test_two_contexts_in_turn_do_not_share_results():
    call = Call(dtype=torch.float32)
    contexts = [torch.randn(1, 3, 64) for _ in range(2)]
    seen = []
    for i in (0, 1, 0, 1, 0):
        call.x = contexts[i]
        seen.append((i, call.run()[0]))
    for i, k in seen:
        call.x, call.options["backend"] = contexts[i], "portable"
        assert relative_error(k, call.run()[0]) < 2 * FORWARD_TOLERANCE


def test_results_do_not_change_with_later_calls():
    call = Call(dtype=torch.float32)
    call.run(), call.run()
    k, _ = call.run()
    before = k.clone()
    call.x = torch.randn_like(call.x)
    call.run()
    assert torch.equal(k, before)


def test_tensors_made_past_the_dispatcher_are_like_any_other():
    made = allocation.allocator((2, 3), (3, 1), torch.float16, torch.device("cpu"))()
    assert (made.shape, made.stride(), made.dtype, made.device.type) == ((2, 3), (3, 1), torch.float16, "cpu")
    flat = torch.arange(10.0)[2:]
    for cut in (allocation.reinterpret, allocation._as_strided):  # the second where PyTorch lacks the first
        assert torch.equal(cut(flat, (2, 3), (3, 1), 1), torch.tensor([[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]))
