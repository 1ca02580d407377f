"""Accounts of the Triton backend, against ``explain`` and against what must be there at once."""

from __future__ import annotations

import pytest
import torch

import hnkernels as hn
from benchmarks.counting import CountingKernels
from hnkernels.accounting.eager import inference, training
from hnkernels.ops.fused import project_pair
from hnkernels.triton.target import TARGETS, planned_for

WIDTH, TOKENS = 64, 256
SIZE = {"device": "meta", "dtype": torch.float16}


def call(activation: str, layer_norm: bool, training: bool, recompute: bool = False):
    """A call of the operation without data, its context, and its parameters."""
    with torch.device("meta"):
        net = hn.Hypernetwork((WIDTH,), activation=activation, layer_norm=layer_norm).half().train(training)
    x = torch.empty(TOKENS, WIDTH, requires_grad=training, **SIZE)
    w = [torch.empty(WIDTH, WIDTH, **SIZE) for _ in "kv"]
    chains = [((mlp, 1.0),) for mlp in net[WIDTH]]
    parameters = [p for mlp in net[WIDTH] for p in mlp.parameters()] + w
    return lambda: project_pair(x, *chains, (w[0], None), (w[1], None), recompute=recompute), x, parameters, net


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("activation", "layer_norm"), [("relu", False), ("silu", False), ("relu", True)])
def test_a_training_step_is_what_explain_says_and_nothing_of_pytorch_besides(activation, layer_norm, recompute, target):
    run, x, parameters, net = call(activation, layer_norm, True, recompute)
    with planned_for(TARGETS[target]):
        accounts = training(run, [x], parameters, CountingKernels)
    explained = hn.explain(*net[WIDTH], TOKENS, WIDTH, recompute=recompute, target=target)
    assert accounts["forward"].launches == explained.forward
    assert accounts["backward"].launches == explained.backward
    assert accounts["forward"].saved == explained.saved_bytes


@pytest.mark.parametrize(("activation", "layer_norm"), [("relu", False), ("silu", True), (None, False)])
def test_inference_is_what_explain_says(activation, layer_norm):
    run, _, _, net = call(activation, layer_norm, False)
    account = inference(run, CountingKernels)
    explained = hn.explain(*net[WIDTH], TOKENS, WIDTH, training=False)
    assert len(account.launches) == len(explained.forward)
    assert account.flops == explained.flops
    assert account.bytes_moved == explained.bytes_moved


def test_allocations_inside_the_operators_are_seen():
    run, *_ = call("relu", False, False)
    row = 2 * TOKENS * WIDTH
    assert inference(run, CountingKernels).peak == 2 * (2 * row + row)  # hidden activations and results, K and V


def test_recomputation_lowers_the_peak_of_the_forward_pass():
    peaks = []
    for recompute in (False, True):
        run, x, parameters, _ = call("silu", False, True, recompute)
        peaks.append(training(run, [x], parameters, CountingKernels)["forward"].peak)
    assert peaks[1] < peaks[0]
