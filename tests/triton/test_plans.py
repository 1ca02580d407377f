"""Values of calls whose plan is an earlier one's, and of those after something has changed under it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import hnkernels as hn
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


@pytest.mark.parametrize("training", [False, True])
def test_a_network_is_freed_while_the_projections_live(training):
    w_k, w_v, x = torch.randn(16, 16), torch.randn(16, 16), torch.randn(2, 16)
    net = hn.Hypernetwork((16,)).train(training)
    with torch.set_grad_enabled(training):
        for _ in range(2):
            hn.hyper_kv(x, *net[16], w_k, w_v, backend="triton")
    mlps = [weakref.ref(mlp) for mlp in net[16]]
    del net
    gc.collect()
    assert [mlp() for mlp in mlps] == [None, None]


def test_a_plan_goes_with_a_projection():
    call = Call(dtype=torch.float32)
    call.run()
    assert call.mlps[0].plans
    call.w.clear()
    gc.collect()
    assert not call.mlps[0].plans


def test_a_parametrized_network_is_trained():
    net = hn.Hypernetwork((16,))
    w_k, w_v, x = torch.randn(8, 16), torch.randn(8, 16), torch.randn(3, 16)
    for mlp in net[16]:
        for linear in (mlp.linear[0], mlp.linear[2]):
            nn.init.normal_(linear.weight)
            parametrizations.weight_norm(linear)
    for _ in range(2):
        gradients = []
        for backend in ("triton", "portable"):
            net.zero_grad()
            sum(t.sum() for t in hn.hyper_kv(x, *net[16], w_k, w_v, backend=backend)).backward()
            gradients.append([p.grad for p in net.parameters()])
        for ours, theirs in zip(*gradients, strict=True):
            assert relative_error(ours, theirs) < 2 * GRADIENT_TOLERANCE


@pytest.mark.parametrize("recorded", [False, True])
def test_a_dropout_that_is_changed(recorded):
    net = hn.Hypernetwork((16,), dropout_structure=(0, 0.5, 0)).train()
    w_k, w_v, x = torch.randn(8, 16), torch.randn(8, 16), torch.randn(3, 16)
    for mlp in net[16]:
        for linear in (mlp.linear[0], mlp.linear[-1]):
            nn.init.normal_(linear.weight)
    drops = [m for m in net.modules() if isinstance(m, nn.Dropout)]
    with torch.set_grad_enabled(recorded):
        for p in (0.5, 0.0, 0.5):
            for drop in drops:
                drop.p = p
            (k, _), (again, _) = (hn.hyper_kv(x, *net[16], w_k, w_v, backend="triton") for _ in range(2))
            assert torch.equal(k, again) is (p == 0)
            if p == 0:
                exact = nn.functional.linear(net[16][0](x), w_k)
                assert relative_error(k.detach(), exact.detach()) < 2 * FORWARD_TOLERANCE
