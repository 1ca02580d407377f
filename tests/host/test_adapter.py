"""What an adapter costs the host on a device that is not there, operations and launches included."""

from __future__ import annotations

import pytest
import torch

import hnkernels as hn
from hnkernels.ops import derived, plan
from hnkernels.triton.testing import pretend_device
from tests.adapter.test_call_counts import LAYERS, sd15, steps
from tests.models import make_net


@pytest.fixture(autouse=True)
def _device():
    with pretend_device("sm_90"):
        yield


def extra(attach, layers: int) -> float:
    """Calls of functions beyond the bare model's, per layer that the adapter acts on."""
    (bare,) = steps(sd15())
    unet = sd15()
    attach(unet)
    return (steps(unet, count=3)[-1] - bare) / layers


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}], ids=["relu", "relu + LayerNorm"])
def test_a_self_attention_layer(options):
    net = make_net((4, 8), **options)
    assert extra(lambda unet: hn.attach(unet, net, targets="attn1"), LAYERS) <= 200


def test_kept_keys_and_values_of_the_prompt():
    net = make_net((8,))
    assert extra(lambda unet: hn.attach(unet, net, targets="attn2"), LAYERS) <= 15


def test_a_fused_network():
    net = make_net((4, 8), activation=None)
    assert extra(lambda unet: hn.attach(unet, net).fuse(), 2 * LAYERS) <= 15


def test_a_captured_call_keeps_what_its_launches_read(monkeypatch):
    unet = sd15()
    hn.attach(unet, make_net((4, 8)), targets="attn1")
    steps(unet)
    kept = []
    monkeypatch.setattr("hnkernels.adapter.call.capturing", lambda device: True)
    monkeypatch.setattr(derived, "capturing", lambda t: True)
    monkeypatch.setattr(derived, "keep_for_graphs", lambda anchors, values: kept.append(values))
    with torch.no_grad():
        unet(torch.randn(2, 4, 8, 8), 1, torch.randn(2, 7, 8))
    assert len(kept) == LAYERS
    assert all(kept)


def test_layers_of_one_shape_run_one_program():
    unet = sd15()
    hn.attach(unet, make_net((4, 8), activation="tanh"), targets="attn1")
    before = set(plan._programs().programs)
    steps(unet)
    shapes = {(4, 64), (8, 16), (8, 4), (8, 1)}  # width and tokens
    assert len(set(plan._programs().programs) - before) == len(shapes)


def test_under_autocast_a_network_is_cast_once_and_not_in_every_layer():
    unet, net = sd15(), make_net((4, 8)).train()
    adapter = hn.attach(unet, net)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 8)

    def casts() -> int:
        with torch.autocast("cpu", torch.bfloat16):
            unet(x, 5, text)
            with torch.profiler.profile() as profile:
                unet(x, 5, text)
        return {event.key: event.count for event in profile.key_averages()}["aten::_to_copy"]

    acting = casts()
    adapter.enabled = False
    # The bare projections cast their frozen weights again in every call; ours are kept.
    assert acting <= casts() + sum(1 for _ in net.parameters())
