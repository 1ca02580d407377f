"""Beside other tools that put their hands on the attention layers: it works on, or says that it cannot."""

import copy
import functools
import pickle
import types

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn

import hnkernels as hn
from tests.models import (
    FORWARD_TOLERANCE,
    TEXT_WIDTH,
    UNET_TOLERANCE,
    attention_layers,
    denoise,
    make_net,
    relative_error,
)

pytestmark = pytest.mark.parametrize("grad", [False, True])


@pytest.fixture(autouse=True)
def _mode(grad):
    with torch.set_grad_enabled(grad):
        yield


@pytest.fixture(params=["relu", None, "fused"])
def adapter(request, unet):
    fused = request.param == "fused"
    adapter = hn.attach(unet, make_net(activation=None if fused else request.param))
    return adapter.fuse() if fused else adapter


def projections(unet):
    return [getattr(layer, name) for layer in attention_layers(unet).values() for name in ("to_k", "to_v")]


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0, "slicing"])
def test_another_attention_processor(unet, x, text, adapter, processor):
    expected = denoise(unet, x, text)
    if processor == "slicing":
        unet.set_attention_slice(1)
    else:
        unet.set_attn_processor(processor())
    assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE


def test_fused_qkv_is_refused_by_name_and_works_again_unfused(unet, x, text, adapter):
    expected = denoise(unet, x, text)
    unet.fuse_qkv_projections()
    with pytest.raises(hn.AdapterError, match=r"transformer_blocks.0.attn1 computed .*unfuse_qkv_projections\(\)"):
        denoise(unet, x, text)
    adapter.enabled = False
    denoise(unet, x, text)  # nothing to lose
    adapter.enabled = True
    unet.unfuse_qkv_projections()
    assert torch.equal(denoise(unet, x, text), expected)


def test_attaching_to_a_model_with_fused_qkv_is_refused_at_the_first_call(unet, x, text):
    unet.fuse_qkv_projections()
    hn.attach(unet, make_net())
    with pytest.raises(hn.AdapterError, match="FusedAttnProcessor2_0"):
        denoise(unet, x, text)


def test_a_tool_in_the_forward_of_the_class_of_all_linears(unet, x, text, adapter, monkeypatch):
    before, own = denoise(unet, x, text), nn.Linear.forward
    weights = [module.weight for module in projections(unet)]

    def doubled_where_called(module, x):  # as A1111 applies LoRA: to the weights, when a linear is called
        return own(module, x) * (1 + any(module.weight is weight for weight in weights))

    monkeypatch.setattr(nn.Linear, "forward", doubled_where_called)
    changed = denoise(unet, x, text)
    monkeypatch.undo()
    assert relative_error(denoise(unet, x, text), before) < UNET_TOLERANCE
    for weight in weights:
        weight.data *= 2
    assert relative_error(changed, denoise(unet, x, text)) < UNET_TOLERANCE


class LowRank(nn.Module):
    """What LoRA libraries put in the place of a linear."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.down, self.up = (
            nn.Parameter(torch.randn(s) * 0.3) for s in ((2, self.in_features), (self.out_features, 2))
        )

    def forward(self, x, *args, **kwargs):
        return self.base_layer(x) + x @ self.down.T @ self.up.T


def merge_into(linear: nn.Linear, low_rank: LowRank) -> None:
    with torch.no_grad():
        linear.weight.add_(low_rank.up @ low_rank.down)


def test_a_projection_replaced_after_attaching_is_picked_up(unet, x, text, adapter):
    plain = denoise(unet, x, text)
    layers, originals = list(attention_layers(unet).values()), {}
    for layer in layers:
        originals[layer] = layer.to_k
        layer.to_k = LowRank(layer.to_k)
    with_lora = denoise(unet, x, text)
    for layer in layers:
        low_rank, layer.to_k = layer.to_k, originals[layer]
        merge_into(layer.to_k, low_rank)
    assert relative_error(with_lora, denoise(unet, x, text)) < UNET_TOLERANCE
    assert not torch.allclose(with_lora, plain)
    adapter.detach()
    assert not [m for m in unet.modules() if "forward" in m.__dict__]


def test_a_projection_replaced_between_two_calls_counts_at_once(unet, x, text):
    hn.attach(unet, make_net((TEXT_WIDTH,), activation="silu"))
    with torch.no_grad():
        before = denoise(unet, x, text)
        layer = list(attention_layers(unet, "attn2").values())[-1]
        layer.to_k = nn.Linear(TEXT_WIDTH, layer.to_k.out_features, bias=False).requires_grad_(False)
        first, second = denoise(unet, x, text), denoise(unet, x, text)
    assert not torch.equal(first, before)
    assert torch.equal(first, second)


def test_a_replaced_projection_is_given_back_untouched(unet, x, text, adapter):
    layer = next(iter(attention_layers(unet, "attn2").values()))
    old, layer.to_k = layer.to_k, LowRank(layer.to_k)
    denoise(unet, x, text)
    adapter.detach()
    assert "forward" not in old.__dict__
    assert "forward" not in layer.to_k.__dict__


def test_a_projection_wrapped_before_attaching_keeps_its_wrapper(unet, x, text):
    calls = []
    for module in projections(unet):
        original = module.forward
        module.forward = lambda y, original=original: calls.append(1) or original(y) * 1.5
    wrappers = [module.forward for module in projections(unet)]
    base = denoise(unet, x, text)
    adapter = hn.attach(unet, make_net())
    calls.clear()
    changed = denoise(unet, x, text)
    assert len(calls) == 28
    assert not torch.allclose(changed, base)
    adapter.detach()
    assert [module.forward for module in projections(unet)] == wrappers
    assert torch.equal(denoise(unet, x, text), base)


def test_a_projection_wrapped_after_attaching(unet, x, text, adapter):
    plain, saved = denoise(unet, x, text), {}
    for module in projections(unet):
        saved[module] = module.forward
        module.forward = lambda y, f=module.forward: f(y) * 1.5
    wrapped = denoise(unet, x, text)
    assert not torch.allclose(wrapped, plain)
    adapter.detach()  # out of the wrapper's inside: the wrapper stays and works
    base_wrapped = denoise(unet, x, text)
    assert not torch.allclose(base_wrapped, wrapped)
    for module, forward in saved.items():
        module.forward = forward  # the other tool gives back what it found: a tap without effect
    base = denoise(unet, x, text)
    fresh = hn.attach(unet, adapter.net)
    assert relative_error(denoise(unet, x, text), plain) < UNET_TOLERANCE
    fresh.detach()
    assert torch.equal(denoise(unet, x, text), base)


@pytest.mark.parametrize("lost", [("to_k",), ("to_v",), ("to_k", "to_v")])
def test_a_forward_that_another_tool_has_reset_is_tapped_again(unet, x, text, lost, adapter):
    # Accelerate's hooks, for one, put back the forward that they found before us.
    before = denoise(unet, x, text)
    layer = next(iter(attention_layers(unet, "attn2").values()))
    for name in lost:
        module = getattr(layer, name)
        module.forward = types.MethodType(type(module).forward, module)
    assert torch.equal(denoise(unet, x, text), before)
    adapter.detach()
    assert not any("forward" in module.__dict__ for module in unet.modules())


def in_front_of(module):
    """How many forwards lie before the module's own."""
    count, forward = 0, module.__dict__.get("forward")
    while forward is not None:
        count, forward = count + 1, getattr(getattr(forward, "__self__", None), "wrapped", None)
    return count


def test_hooks_that_come_and_go_leave_nothing(unet, x, text, adapter):
    hooks = pytest.importorskip("accelerate.hooks")
    expected, linears = denoise(unet, x, text), projections(unet)
    for _ in range(3):
        for linear in linears:
            hooks.add_hook_to_module(linear, hooks.ModelHook())
        assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE
        for linear in linears:
            hooks.remove_hook_from_module(linear)
        assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE
    assert {in_front_of(linear) for linear in linears} == {1}
    adapter.detach()
    assert {in_front_of(linear) for linear in linears} == {0}


def test_networks_on_a_model_and_on_one_around_it(unet, x, text):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = unet

        def forward(self, sample, timestep, encoder_hidden_states):
            return self.inner(sample, timestep, encoder_hidden_states)

    around = Around()
    inner, outer = hn.attach(unet, make_net()), hn.attach(around, make_net())
    expected = denoise(around, x, text)
    for _ in range(3):
        assert relative_error(denoise(around, x, text), expected) < UNET_TOLERANCE
    assert max(map(in_front_of, projections(unet))) == 2
    inner.detach()
    outer.detach()
    assert {in_front_of(linear) for linear in projections(unet)} == {0}


def test_a_copied_part_of_a_model_is_one_without_networks(unet, x, text, adapter):
    denoise(unet, x, text)
    layer = list(attention_layers(unet).values())[-1]
    for linear in (copy.deepcopy(layer.to_k), copy.deepcopy(layer).to_k):
        assert torch.equal(linear(text), F.linear(text, layer.to_k.weight))
        assert not torch.equal(layer.to_k(text), linear(text))
        assert len(pickle.dumps(linear)) < 2 * len(pickle.dumps(nn.Linear(TEXT_WIDTH, layer.to_k.out_features)))


def test_a_weight_that_is_a_buffer(unet, x, text, adapter):
    expected = denoise(unet, x, text)
    for linear in projections(unet):
        weight = linear.weight
        del linear.weight
        linear.register_buffer("weight", weight.detach())
    for _ in range(2):
        assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE


def test_a_processor_that_needs_only_v_is_let_through(unet, x, text):
    # Identity attention, as in perturbed-attention guidance.
    class OnlyV(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
            return attn.to_out[0](attn.to_v(hidden_states))

    base_layers = attention_layers(unet, "attn1")
    hn.attach(unet, make_net())
    for layer in base_layers.values():
        layer.set_processor(OnlyV())
    assert denoise(unet, x, text).isfinite().all()


def test_hooks_on_the_projections_keep_working(unet, x, text, adapter):
    seen = []
    for module in projections(unet):
        module.register_forward_hook(lambda m, i, out: seen.append(out.shape))
    denoise(unet, x, text)
    assert len(seen) == 28


def test_a_weight_that_exists_during_its_call_only(unet, x, text, adapter):
    # Pruning, weight norm and offloading make the weight in a hook: in to_k's call, to_v's is not there.
    expected = denoise(unet, x, text)

    def restore(module, args):
        module.weight.copy_(module.kept)

    def destroy(module, args, output):
        module.weight.fill_(float("nan"))

    with torch.no_grad():
        for module in projections(unet):
            module.kept = module.weight.detach().clone()
            module.register_forward_pre_hook(restore)
            module.register_forward_hook(destroy)
            module.weight.fill_(float("nan"))
        assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE


def test_layerwise_casting_after_attaching(unet, x, text, grad):
    adapter = hn.attach(unet, make_net())
    expected = denoise(unet, x, text)
    unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    actual = denoise(unet, x, text)
    adapter.detach()
    base = denoise(unet, x, text)
    # bfloat16 storage rounds every weight to 0.4 %.
    assert relative_error(actual, expected) < 0.03 < relative_error(base, expected)


def test_parametrized_projections(unet, x, text, adapter):
    class Double(nn.Module):
        def forward(self, weight):
            return weight * 2

    layers = list(attention_layers(unet).values())
    for layer in layers:
        nn.utils.parametrize.register_parametrization(layer.to_k, "weight", Double())
    actual = denoise(unet, x, text)
    for layer in layers:
        nn.utils.parametrize.remove_parametrizations(layer.to_k, "weight")  # leaves the doubled weight
    assert relative_error(actual, denoise(unet, x, text)) < UNET_TOLERANCE


def test_a_processor_that_gives_v_another_tensor_than_k(unet, x, text, adapter):
    class Shifted(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
            attn.to_k(hidden_states)
            return attn.to_out[0](attn.to_v(hidden_states + 1))

    class OnlyShiftedV(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
            return attn.to_out[0](attn.to_v(hidden_states + 1))

    outputs = []
    for processor in (Shifted(), OnlyShiftedV()):
        for layer in attention_layers(unet, "attn1").values():
            layer.set_processor(processor)
        outputs.append(denoise(unet, x, text))
    assert torch.equal(*outputs)


class Writing(nn.Module):
    """An attention that writes into what it sees between K and V."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        x = x.clone()
        q, k = self.to_q(x), self.to_k(x)
        x.mul_(0.5)
        return torch.stack([q, k, self.to_v(x)])


@pytest.mark.parametrize("hooked", [False, True])
def test_an_attention_that_writes_into_its_context_between_k_and_v(hooked):
    model, net, x = nn.Sequential(), make_net((8,), activation="relu"), torch.randn(2, 5, 8)
    model.attn1 = Writing()
    q, k, v = (functools.partial(F.linear, weight=m.weight, bias=m.bias) for m in model.attn1.children())
    expected = torch.stack([q(x), k(net[8][0](x)), v(net[8][1](0.5 * x))])
    if hooked:
        model.attn1.to_v.register_forward_pre_hook(lambda module, args: None)
    hn.attach(model, net)
    for _ in range(3):
        assert relative_error(model(x), expected) < FORWARD_TOLERANCE
