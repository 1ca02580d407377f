"""A hypernetwork beside LoRA, as diffusers and PEFT put it into a model: before, after, merged, and taken out again."""

import pytest
import torch
from torch import nn

import hnkernels as hn
from tests.adapter.hosts import by_hand
from tests.models import (
    GRADIENT_TOLERANCE,
    UNET_TOLERANCE,
    attention_layers,
    copied,
    denoise,
    make_net,
    randomise,
    relative_error,
)

pytest.importorskip("peft", reason="diffusers loads LoRA through PEFT")

RANK = 2


class LoRA:
    """Low-rank factors for every projection of every attention layer, and what they come to."""

    def __init__(self, unet):
        self.factors = {}
        for layer in attention_layers(unet):
            for projection in ("to_q", "to_k", "to_v", "to_out.0"):
                linear = unet.get_submodule(f"{layer}.{projection}")
                down, up = torch.randn(RANK, linear.in_features), torch.randn(linear.out_features, RANK)
                self.factors[f"{layer}.{projection}"] = (down * 0.3, up * 0.3)

    def load(self, unet, name="style"):
        state = {}
        for layer, (down, up) in self.factors.items():
            state.update({f"{layer}.lora_A.weight": down.clone(), f"{layer}.lora_B.weight": up.clone()})
        unet.load_lora_adapter(state, prefix=None, adapter_name=name)

    @torch.no_grad()
    def merged_into(self, unet, scale=1.0):
        """A copy of the UNet with the factors in its weights."""
        twin = copied(unet)
        for layer, (down, up) in self.factors.items():
            twin.get_submodule(layer).weight.add_(scale * up @ down)
        return twin


@pytest.fixture
def base(unet):
    """A copy of the UNet that nobody touches."""
    return copied(unet)


@pytest.fixture
def lora(unet):
    return LoRA(unet)


@pytest.fixture(params=["relu", None], ids=["relu", "affine and fused"])
def net(request):
    return make_net(activation=request.param)


def attach(unet, net):
    adapter = hn.attach(unet, net)
    return adapter if net.config.activation else adapter.fuse()


@pytest.fixture(params=[True, False], ids=["recorded", "not recorded"], autouse=True)
def _mode(request):
    with torch.set_grad_enabled(request.param):
        yield


def exactly(model, *nets, x, text):
    """The output of a float64 copy with the reference's MLPs in front of the projections."""
    with torch.no_grad():
        return denoise(by_hand(nn.Module.to(copied(model), torch.float64), *nets), x.double(), text.double())


def check(unet, model, *nets, x, text):
    """The UNet gives what a model with these networks by hand gives."""
    assert relative_error(denoise(unet, x, text), exactly(model, *nets, x=x, text=text)) < UNET_TOLERANCE


def test_all_the_versions_that_these_tests_tell_apart_differ(unet, base, lora, x, text):
    net = make_net()
    versions = [
        exactly(model, *nets, x=x, text=text)
        for model in (base, lora.merged_into(base), lora.merged_into(base, 0.5))
        for nets in ((), (net,))
    ]
    for i, a in enumerate(versions):
        assert all(relative_error(b, a) > 100 * UNET_TOLERANCE for b in versions[:i])


def test_loaded_before_attaching(unet, base, lora, net, x, text):
    lora.load(unet)
    attach(unet, net)
    check(unet, lora.merged_into(base), net, x=x, text=text)


def test_loaded_after_attaching(unet, base, lora, net, x, text):
    attach(unet, net)
    check(unet, base, net, x=x, text=text)
    lora.load(unet)
    check(unet, lora.merged_into(base), net, x=x, text=text)


def test_taken_out_again(unet, base, lora, net, x, text):
    attach(unet, net)
    before = denoise(unet, x, text)
    lora.load(unet)
    denoise(unet, x, text)
    unet.unload_lora()
    assert torch.equal(denoise(unet, x, text), before)
    check(unet, base, net, x=x, text=text)


def test_its_scale_is_followed(unet, base, lora, net, x, text):
    attach(unet, net)
    lora.load(unet)
    for scale in (1.0, 0.5, 1.0):
        unet.set_adapters("style", scale)
        check(unet, lora.merged_into(base, scale), net, x=x, text=text)
    unet.disable_lora()
    check(unet, base, net, x=x, text=text)
    unet.enable_lora()
    check(unet, lora.merged_into(base), net, x=x, text=text)


def test_its_scale_for_one_call(unet, base, lora, net, x, text):
    attach(unet, net)
    lora.load(unet)
    for scale in (0.5, None):
        options = None if scale is None else {"scale": scale}
        out = unet(x, torch.tensor(10), text, cross_attention_kwargs=options).sample
        expected = exactly(lora.merged_into(base, 1.0 if scale is None else scale), net, x=x, text=text)
        assert relative_error(out, expected) < UNET_TOLERANCE


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("seen", ["at every step", "at the end"])
def test_merged_into_the_weights_and_the_layers_taken_out(unet, base, lora, net, x, text, safe, seen):
    # The weights are the same objects in the same version afterwards: PEFT writes through weight.data.
    attach(unet, net)
    check(unet, base, net, x=x, text=text)
    merged = lora.merged_into(base)
    lora.load(unet)
    if seen == "at every step":
        check(unet, merged, net, x=x, text=text)
    unet.fuse_lora(safe_fusing=safe)
    if seen == "at every step":
        check(unet, merged, net, x=x, text=text)
    unet.unload_lora()
    check(unet, merged, net, x=x, text=text)


def test_merged_between_two_attachments(unet, base, lora, net, x, text):
    with attach(unet, net):
        denoise(unet, x, text)
    lora.load(unet)
    unet.fuse_lora()
    unet.unload_lora()
    attach(unet, net)
    check(unet, lora.merged_into(base), net, x=x, text=text)


def test_merged_and_unmerged(unet, base, lora, net, x, text):
    attach(unet, net)
    check(unet, base, net, x=x, text=text)
    lora.load(unet)
    unet.fuse_lora()
    check(unet, lora.merged_into(base), net, x=x, text=text)
    unet.unfuse_lora()
    check(unet, lora.merged_into(base), net, x=x, text=text)
    unet.unload_lora()
    check(unet, base, net, x=x, text=text)


def test_merged_at_another_scale(unet, base, lora, net, x, text):
    attach(unet, net)
    for scale in (0.5, 1.0):
        lora.load(unet)
        unet.fuse_lora(lora_scale=scale)
        check(unet, lora.merged_into(base, scale), net, x=x, text=text)
        unet.unfuse_lora()
        unet.unload_lora()
        check(unet, base, net, x=x, text=text)


def test_two_of_them_and_one_deleted(unet, base, lora, net, x, text):
    other = LoRA(unet)
    attach(unet, net)
    lora.load(unet, "style")
    other.load(unet, "content")
    unet.set_adapters(["style", "content"], [1.0, 0.5])
    check(unet, other.merged_into(lora.merged_into(base), 0.5), net, x=x, text=text)
    unet.delete_adapters("style")
    unet.set_adapters("content", 0.5)
    check(unet, other.merged_into(base, 0.5), net, x=x, text=text)


@pytest.mark.parametrize("first_off", [0, 1])
def test_two_hypernetworks_around_it(unet, base, lora, x, text, first_off):
    nets = [make_net(activation="relu"), make_net(activation=None)]
    merged = lora.merged_into(base)
    adapters = [hn.attach(unet, nets[0])]
    lora.load(unet)
    adapters.append(hn.attach(unet, nets[1]))
    check(unet, merged, *nets, x=x, text=text)
    adapters[1].fuse()
    check(unet, merged, *nets, x=x, text=text)
    adapters[first_off].detach()
    check(unet, merged, nets[1 - first_off], x=x, text=text)
    unet.unload_lora()
    check(unet, base, nets[1 - first_off], x=x, text=text)
    adapters[1 - first_off].detach()
    assert torch.equal(denoise(unet, x, text), denoise(base, x, text))


@pytest.mark.parametrize("called", [False, True])
def test_detaching_leaves_it_there(unet, base, lora, net, x, text, called):
    lora.load(base)
    adapter = attach(unet, net)
    lora.load(unet)
    if called:
        denoise(unet, x, text)
    adapter.detach()
    assert torch.equal(denoise(unet, x, text), denoise(base, x, text))
    assert not [name for name, module in unet.named_modules() if "forward" in module.__dict__]


def test_both_are_trained_at_once(unet, base, lora, x, text):
    with torch.enable_grad():
        net = make_net().train()
        hn.attach(unet, net)
        lora.load(unet)
        denoise(unet, x, text).square().sum().backward()
        lora.load(base)
        twin = by_hand(nn.Module.to(base, torch.float64), net)
        denoise(twin, x.double(), text.double()).square().sum().backward()
    expected = {name: p.grad for name, p in twin.named_parameters() if "lora_" in name}
    actual = {name: p.grad for name, p in unet.named_parameters() if "lora_" in name}
    assert actual.keys() == expected.keys() != set()
    ours = [torch.cat([g.flatten() for g in actual.values()])]
    theirs = [torch.cat([g.flatten() for g in expected.values()])]
    for mlp, reference in twin.by_hand.items():
        ours.append(torch.cat([p.grad.flatten() for p in mlp.parameters()]))
        theirs.append(torch.cat([p.grad.flatten() for p in reference.parameters()]))
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) < 10 * GRADIENT_TOLERANCE  # through a whole UNet


def test_a_step_of_its_training_is_seen_by_the_next_call(unet, base, lora, net, x, text):
    attach(unet, net)
    lora.load(unet)
    denoise(unet, x, text)
    factors = [p for name, p in unet.named_parameters() if "lora_" in name]
    with torch.no_grad():
        for p in factors:
            p.requires_grad_()
            p.grad = torch.ones_like(p)
        torch.optim.SGD(factors, lr=0.1).step()
        lora.factors = {layer: (down - 0.1, up - 0.1) for layer, (down, up) in lora.factors.items()}
        check(unet, lora.merged_into(base), net, x=x, text=text)


def test_a_network_that_was_changed_while_it_was_merged(unet, base, lora, net, x, text):
    attach(unet, net)
    denoise(unet, x, text)
    lora.load(unet)
    unet.fuse_lora()
    randomise(net)
    check(unet, lora.merged_into(base), net, x=x, text=text)


@torch.no_grad()
def test_projections_that_peft_saves_as_a_whole(unet, x, text):
    from peft import LoraConfig, inject_adapter_in_model

    net, pure = make_net(), copied(unet)
    adapter = hn.attach(unet, net)
    denoise(unet, x, text, 20)
    inject_adapter_in_model(LoraConfig(r=RANK, target_modules=["to_q"], modules_to_save=["to_k", "to_v"]), unet)
    for t in (20, 10):
        assert relative_error(denoise(unet, x, text, t), denoise(by_hand(pure, net), x, text, t)) < UNET_TOLERANCE
    adapter.detach()
    assert torch.equal(denoise(unet, x, text), denoise(pure, x, text))
