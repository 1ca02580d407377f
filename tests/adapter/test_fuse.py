"""Affine networks inside the weights of ``to_k`` and ``to_v``."""

import pytest
import torch

import hnkernels as hn
from hnkernels import PerRow
from hnkernels.adapter.host import Host
from tests.models import (
    GRADIENT_TOLERANCE,
    UNET_TOLERANCE,
    WIDTHS,
    attention_layers,
    copied,
    denoise,
    make_net,
    relative_error,
)


@pytest.fixture
def net():
    return make_net(activation=None)


@pytest.mark.parametrize("strength", [1.0, 0.4, -1.5])
def test_fused_and_unfused_agree(unet, x, text, net, strength):
    adapter = hn.attach(unet, net, strength=strength)
    with torch.no_grad():
        plain = denoise(unet, x, text)
        assert adapter.fuse() is adapter
        assert adapter.fused
        assert relative_error(denoise(unet, x, text), plain) < UNET_TOLERANCE
        assert adapter.unfuse() is adapter
        assert not adapter.fused
        assert torch.equal(denoise(unet, x, text), plain)


def test_fused_no_mlp_is_evaluated(unet, x, text, net, evaluations):
    hn.attach(unet, net).fuse()
    with torch.no_grad():
        denoise(unet, x, text)
    assert not evaluations


def test_q_is_left_alone_while_a_network_is_fused(unet, net):
    def tapped():
        return [set(layer.taps) for layer in Host.of(unet).layers if layer.spec.kind == "attn1"]

    adapter = hn.attach(unet, net)
    before = tapped()
    assert {"q", "k", "v"} in before
    adapter.fuse()
    assert all(streams == {"k", "v"} for streams in tapped())
    adapter.unfuse()
    assert tapped() == before


def test_the_strength_may_still_change(unet, x, text, net):
    adapter = hn.attach(unet, net).fuse()
    with torch.no_grad():
        base = (adapter.detach(), denoise(unet, x, text))[1]
        adapter = hn.attach(unet, net).fuse()
        for strength in (1.0, 0.5, 0.0, -0.5, 1.0):
            adapter.strength = strength
            fused = denoise(unet, x, text)
            adapter.unfuse()
            assert relative_error(fused, denoise(unet, x, text)) < UNET_TOLERANCE
            adapter.fuse()
            if strength == 0:
                assert torch.equal(fused, base)


def test_the_hosts_weights_stay_untouched(unet, x, text, net):
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    base = denoise(unet, x, text)
    adapter = hn.attach(unet, net).fuse()
    with torch.no_grad():
        denoise(unet, x, text)
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())
    adapter.detach()
    assert torch.equal(denoise(unet, x, text), base)


@pytest.mark.parametrize(
    "options", [{"activation": "relu"}, {"layer_norm": True, "activation": None}, {"activation": "prelu"}]
)
def test_other_networks_are_refused(unet, options):
    adapter = hn.attach(unet, make_net(**options))
    with pytest.raises(hn.AdapterError, match="only an affine hypernetwork can be fused"):
        adapter.fuse()
    assert not adapter.fused


def test_active_dropout_is_refused_and_computed_if_it_comes_later(unet, x, text):
    net = make_net(activation=None, dropout_structure=(0, 0.5, 0)).train()
    adapter = hn.attach(unet, net)
    with pytest.raises(hn.AdapterError, match=r"call net.eval\(\)"):
        adapter.fuse()
    net.eval()
    adapter.fuse()
    net.train()
    with torch.no_grad():
        assert not torch.equal(denoise(unet, x, text), denoise(unet, x, text))


def test_a_network_after_it_that_is_not_fused_is_in_the_way(unet):
    first, second = hn.attach(unet, make_net(activation=None)), hn.attach(unet, make_net(activation="relu"))
    with pytest.raises(hn.AdapterError, match="comes after this network in the chain and is not fused"):
        first.fuse()
    second.detach()
    first.fuse()


def test_a_network_after_it_at_other_layers_is_not(unet):
    first = hn.attach(unet, make_net(activation=None), targets="attn2")
    hn.attach(unet, make_net(WIDTHS), targets="attn1")
    first.fuse()


@pytest.mark.parametrize("fused", [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_chains_of_fused_and_unfused(unet, x, text, fused, activation):
    if activation and fused[0]:
        pytest.skip("a network with an activation cannot be fused: see test_other_networks_are_refused")
    adapters = [hn.attach(unet, make_net(activation=a), strength=s) for a, s in ((activation, 0.8), (None, -0.6))]
    with torch.no_grad():
        plain = denoise(unet, x, text)
        for adapter, flag in list(zip(adapters, fused, strict=True))[::-1]:
            if flag:
                adapter.fuse()
        assert relative_error(denoise(unet, x, text), plain) < UNET_TOLERANCE


def test_a_network_attached_after_a_fused_one_still_comes_after_it(unet, x, text, net):
    other = make_net(activation="relu")
    first, second = hn.attach(unet, net), hn.attach(unet, other)
    with torch.no_grad():
        plain = denoise(unet, x, text)
        second.detach()
        first.fuse()
        hn.attach(unet, other)
        assert relative_error(denoise(unet, x, text), plain) < UNET_TOLERANCE


def test_a_fused_network_still_trains(unet, x, text, net):
    adapter = hn.attach(unet, net)
    denoise(unet, x, text).sum().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    adapter.fuse()
    with torch.no_grad():
        denoise(unet, x, text)  # what is kept from sampling must not be used in training
    denoise(unet, x, text).sum().backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(net.parameters(), expected, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_prompt_trains_through_a_fused_frozen_network_after_sampling(unet, x, text, net, mode):
    adapter = hn.attach(unet, net.requires_grad_(False))
    text.requires_grad_()
    denoise(unet, x, text).sum().backward()
    expected, text.grad = text.grad, None
    adapter.fuse()
    with mode():
        denoise(unet, x, text)
    denoise(unet, x, text).sum().backward()
    assert relative_error(text.grad, expected) < 1e-4  # two orders of the algebra, through some fifty layers twice


def test_projections_with_a_bias(unet, x, text, net):
    for layer in attention_layers(unet).values():
        for name in ("to_k", "to_v"):
            old = getattr(layer, name)
            new = torch.nn.Linear(old.in_features, old.out_features).requires_grad_(False)
            setattr(layer, name, new)
    adapter = hn.attach(unet, net)
    with torch.no_grad():
        plain = denoise(unet, x, text)
        adapter.fuse()
        assert relative_error(denoise(unet, x, text), plain) < UNET_TOLERANCE


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_projections_that_train_get_their_gradients_beside_a_fused_frozen_network(unet, x, text, net, strength):
    adapter = hn.attach(unet, net.requires_grad_(False), strength)
    projections = [p for n, p in unet.named_parameters() if n.endswith(("attn2.to_k.weight", "attn1.to_v.weight"))]
    gradients = []
    for fused in (False, True):
        adapter.fused = fused
        with torch.no_grad():
            denoise(unet, x, text)  # where the network does live in the weights
        for p in projections:
            p.requires_grad_(True)
        loss = denoise(unet, x, text).square().sum()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, projections)]))
        for p in projections:
            p.requires_grad_(False)
    assert relative_error(*gradients) <= GRADIENT_TOLERANCE


@torch.no_grad()
def test_a_strength_that_changes_at_every_step_counts_and_leaves_no_folded_weights_behind(unet, x, text, net):
    twin = copied(unet)
    unfused, adapter = hn.attach(twin, net), hn.attach(unet, net).fuse()
    for step in range(4):
        unfused.strength = adapter.strength = 1 - step / 2
        assert relative_error(denoise(unet, x, text, t=10 - step), denoise(twin, x, text, t=10 - step)) < UNET_TOLERANCE
    assert {len(layer.folds) for layer in Host.of(unet).layers} <= {0, 2}  # K's and V's, and none at strength 0


@torch.no_grad()
@pytest.mark.parametrize(
    "strength", [PerRow(0.5, -1), {"v": PerRow(0.5, -1)}, {"k": PerRow(0.5, -1), "v": 0.3}], ids=repr
)
def test_strengths_that_differ_by_row_are_computed(unet, x, text, net, strength):
    adapter = hn.attach(unet, net, strength)
    plain = denoise(unet, x, text)
    adapter.fuse()
    assert relative_error(denoise(unet, x, text), plain) < UNET_TOLERANCE


@pytest.mark.parametrize("whose", ["network", "projections"])
def test_what_is_unfrozen_after_a_recorded_call_gets_its_gradients(unet, x, text, net, whose):
    adapter = hn.attach(unet, net.requires_grad_(False))
    projections = [p for n, p in unet.named_parameters() if n.endswith(("attn2.to_k.weight", "attn1.to_v.weight"))]
    parameters = list(net.parameters()) if whose == "network" else projections
    gradients = []
    for fused in (False, True):
        adapter.fused = fused
        denoise(unet, x, text.clone().requires_grad_()).sum().backward()
        for p in parameters:
            p.requires_grad_(True)
        found = torch.autograd.grad(denoise(unet, x, text).square().sum(), parameters)
        gradients.append(torch.cat([g.flatten() for g in found]))
        for p in parameters:
            p.requires_grad_(False)
    assert relative_error(*gradients) <= GRADIENT_TOLERANCE
