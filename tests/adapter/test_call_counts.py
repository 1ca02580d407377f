"""What the adapter adds to a call of the model, in function calls: few, and the same on every machine."""

import pytest
import torch
from diffusers import UNet2DConditionModel

import hnkernels as hn
import hnkernels.adapter.run
from tests.adapter.test_weights import make_generator
from tests.calls import count_calls
from tests.models import make_net

LAYERS = 16  # of each kind


def sd15():
    """A UNet of SD 1.5's shape, as narrow as it can be: contexts of the widths 4 and 8, text of width 8."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8, 8, 8),
        layers_per_block=2,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=1,
    )
    return unet.eval().requires_grad_(False)


def steps(unet, count=1, start=900):
    """The calls of a few denoising steps of one sampling run, the last ones after warming up."""
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 8)
    with torch.no_grad():
        for t in (999, 998, 997):
            unet(x, t, text)
        return [count_calls(lambda t=t: unet(x, t, text)) for t in range(start, start - count, -1)]


@pytest.fixture(scope="module")
def bare():
    (count,) = steps(sd15())
    return count


def extra(bare, attach, layers):
    """Calls beyond the bare model's, per layer."""
    unet = sd15()
    attach(unet)
    counts = steps(unet, count=3)
    assert len(set(counts)) == 1
    return (counts[0] - bare) / layers


def test_kept_keys_and_values_of_the_prompt(bare):
    net = make_net((8,))
    assert extra(bare, lambda unet: hn.attach(unet, net, targets="attn2"), LAYERS) <= 15


@pytest.mark.parametrize(("targets", "layers"), [("attn1", LAYERS), (("attn1", "attn2"), 2 * LAYERS)])
def test_a_fused_network(bare, targets, layers):
    net = make_net((4, 8), activation=None)
    assert extra(bare, lambda unet: hn.attach(unet, net, targets=targets).fuse(), layers) <= 15


def test_a_fused_network_is_one_linear_per_projection(monkeypatch):
    unet, net = sd15(), make_net((4, 8), activation=None)
    hn.attach(unet, net, targets="attn1").fuse()
    steps(unet)
    monkeypatch.setattr(hnkernels.adapter.run, "tapped", lambda *_: pytest.fail("the tap did not do it by itself"))
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 8)
    with torch.no_grad():
        unet(x, 1, text)


def test_self_attention_without_the_operation_itself(bare, monkeypatch):
    # Widths 4 and 8 are also those of the projections, so that x itself will do for K and V.
    monkeypatch.setattr(hnkernels.adapter.run, "hyper_kv", lambda x, *_, **__: (x, x))
    net = make_net((4, 8))
    assert extra(bare, lambda unet: hn.attach(unet, net, targets="attn1"), LAYERS) <= 80


def test_a_network_that_is_switched_off(bare):
    net = make_net((4, 8))
    assert extra(bare, lambda unet: setattr(hn.attach(unet, net), "enabled", False), 2 * LAYERS) <= 15


def test_layers_that_no_network_reaches_cost_nothing(bare):
    net = make_net((8,))

    def attach(unet):
        hn.attach(unet, net, targets="attn2")
        assert not any("forward" in getattr(m, "to_q", m).__dict__ for n, m in unet.named_modules() if "attn1" in n)

    extra(bare, attach, LAYERS)


def test_generated_weights_without_the_operations_themselves(bare, monkeypatch):
    def linears(x, weights, *_, **__):
        return [torch.nn.functional.linear(x, w) for w in weights]

    monkeypatch.setattr("hnkernels.adapter.deltas.lowrank_linears", linears)
    monkeypatch.setattr("hnkernels.adapter.deltas.lowrank_linear", lambda x, w, *_, **__: linears(x, [w])[0])

    def attach(unet):
        hn.attach(unet, make_generator(unet).float().generate_weights("ink").detach())

    assert extra(bare, attach, 2 * LAYERS) <= 150


def test_the_first_call_of_a_run_proves_its_content_with_few_calls_per_parameter(bare):
    unet, net = sd15(), make_net((8,))
    hn.attach(unet, net, targets="attn2")
    (later,) = steps(unet)
    (first,) = steps(unet, start=999)
    tensors = 2 * LAYERS + len(list(net.parameters()))
    assert later < first <= later + 8 * tensors
