"""Networks merged into a model's weights, held to the model with the reference's networks in front of its layers."""

import pytest
import torch
from torch import nn

import hnkernels as hn
from hnkernels.convert.merging import ORIGINAL_PREFIX
from tests.models import (
    UNET_TOLERANCE,
    WIDTHS,
    WebUIProcessor,
    attention_layers,
    copied,
    denoise,
    make_net,
    noise,
    prompt,
    relative_error,
    tiny_unet,
)


@pytest.fixture
def net():
    return make_net(activation=None)


def truth(unet, nets, x, text, kinds=("attn1", "attn2")):
    """The output in float64 of a copy of the UNet in which the reference runs the networks, one call per layer."""
    twin = nn.Module.to(copied(unet), torch.float64)
    twin.set_attn_processor(WebUIProcessor(nets, kinds))
    with torch.no_grad():
        return denoise(twin, x.double(), text.double())


def original_names(state):
    """A UNet's tensors named as in an original checkpoint, as far as merging goes, beside those of other parts."""
    named = {ORIGINAL_PREFIX + key: tensor for key, tensor in state.items()}
    return named | {"first_stage_model.decoder.conv_in.weight": torch.randn(3), "model_ema.decay": torch.tensor(0.9)}


@pytest.mark.parametrize("strength", [1.0, 0.4, -1.5])
@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 1.5, 0.5, 1)])
def test_a_merged_model_is_the_model_with_the_network(structure, strength):
    net = make_net(activation=None, layer_structure=structure).double()
    net.set_multiplier(0.8)
    unet, x, text = tiny_unet(torch.float64), noise(dtype=torch.float64), prompt(dtype=torch.float64)
    base = denoise(unet, x, text)
    net.set_multiplier(0.8 * strength)
    expected = truth(unet, [net], x, text)
    net.set_multiplier(0.8)
    hn.merge(unet, net, strength)
    assert relative_error(denoise(unet, x, text), expected) < 1e-11
    assert relative_error(base, expected) > 1e-3


def test_in_fp32_it_is_as_exact_as_any_forward_pass(net):
    unet, x, text = tiny_unet(), noise(), prompt()
    expected = truth(unet, [net], x, text)
    with hn.attach(unet, net):
        attached = denoise(unet, x, text)
    hn.merge(unet, net)
    assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE
    assert relative_error(denoise(unet, x, text), attached) < UNET_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_every_weight_is_rounded_once(net, dtype):
    unet = tiny_unet(dtype)
    exact = nn.Module.to(copied(unet), torch.float64)
    hn.merge(exact, net), hn.merge(unet, net)
    for key, tensor in unet.state_dict().items():
        assert torch.equal(tensor, exact.state_dict()[key].to(dtype)), key


def test_several_networks_chain_in_order_each_with_its_strength():
    nets = [make_net(activation=None).double(), make_net((8, 12), activation="linear").double()]
    unet, x, text = tiny_unet(torch.float64), noise(dtype=torch.float64), prompt(dtype=torch.float64)
    for net, strength in zip(nets, (0.7, -0.3), strict=True):
        net.set_multiplier(strength)
    expected, swapped = truth(unet, nets, x, text), truth(unet, nets[::-1], x, text)
    for net in nets:
        net.set_multiplier(1)
    hn.merge(unet, nets, (0.7, -0.3))
    assert relative_error(denoise(unet, x, text), expected) < 1e-11
    assert relative_error(swapped, expected) > 1e-5  # the order does matter


@pytest.mark.parametrize("targets", ["attn1", ["attn2"]])
def test_targets_choose_the_layers(net, targets):
    unet, x, text = tiny_unet(torch.float64), noise(dtype=torch.float64), prompt(dtype=torch.float64)
    expected = truth(unet, [net], x, text, targets)
    changed = hn.merge(unet, net, targets=targets)
    assert set(changed) == set(attention_layers(unet, targets if isinstance(targets, str) else targets[0]))
    assert relative_error(denoise(unet, x, text), expected) < 1e-11


def test_only_widths_of_the_network_change():
    unet = tiny_unet()
    before = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    changed = hn.merge(unet, make_net((WIDTHS[0],), activation=None))
    parts = ("to_k.weight", "to_v.weight", "to_out.0.bias")
    expected = {f"{name}.{part}" for name in changed for part in parts}
    assert {key for key, tensor in unet.state_dict().items() if not torch.equal(tensor, before[key])} == expected
    assert set(changed) == {n for n, m in attention_layers(unet, "attn1").items() if m.to_k.in_features == WIDTHS[0]}


def test_own_biases_of_k_and_v_take_the_constants(net):
    unet, x, text = tiny_unet(torch.float64), noise(dtype=torch.float64), prompt(dtype=torch.float64)
    for layer in attention_layers(unet).values():
        for name in ("to_k", "to_v"):
            old = getattr(layer, name)
            new = nn.Linear(old.in_features, old.out_features, dtype=torch.float64)
            setattr(layer, name, new.requires_grad_(False))
    outs = {name: layer.to_out[0].bias.clone() for name, layer in attention_layers(unet).items()}
    with hn.attach(unet, net), torch.no_grad():
        expected = denoise(unet, x, text)
    hn.merge(unet, net)
    assert relative_error(denoise(unet, x, text), expected) < 1e-11
    assert all(torch.equal(m.to_out[0].bias, outs[name]) for name, m in attention_layers(unet).items())


def test_a_network_without_constants_needs_no_bias(net):
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    unet, x, text = tiny_unet(torch.float64), noise(dtype=torch.float64), prompt(dtype=torch.float64)
    for layer in attention_layers(unet).values():
        layer.to_out[0].bias = None
    with hn.attach(unet, net), torch.no_grad():
        expected = denoise(unet, x, text)
    hn.merge(unet, net)
    assert relative_error(denoise(unet, x, text), expected) < 1e-11


def test_at_strength_zero_nothing_changes(net):
    unet = tiny_unet()
    before = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    assert hn.merge(unet, net, 0) == []
    assert all(torch.equal(tensor, before[key]) for key, tensor in unet.state_dict().items())


def test_an_attached_network_sees_the_merged_weights(net):
    unet, x, text = tiny_unet(), noise(), prompt()
    expected = truth(unet, [net, net], x, text)
    adapter = hn.attach(unet, net).fuse()
    with torch.no_grad():
        denoise(unet, x, text)  # fills every cache
        hn.merge(unet, net)
        # Merged is next to the projection, so the attached one comes first.
        assert relative_error(denoise(unet, x, text), expected) < UNET_TOLERANCE
    adapter.detach()


def test_a_pipeline_is_merged_in_its_unet(net):
    class Pipeline:
        unet = tiny_unet()

    twin = copied(Pipeline.unet)
    assert hn.merge(Pipeline(), net) == hn.merge(twin, net)
    assert all(torch.equal(t, twin.state_dict()[k]) for k, t in Pipeline.unet.state_dict().items())


def test_a_state_dict_is_merged_like_the_module(net):
    unet = tiny_unet()
    state = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    before = {key: tensor.clone() for key, tensor in state.items()}
    merged = hn.merge_state_dict(state, [net, net], [0.5, 2])
    hn.merge(unet, [net, net], [0.5, 2])
    assert list(merged) == list(state)
    assert all(torch.equal(merged[key], tensor) for key, tensor in unet.state_dict().items())
    assert all(torch.equal(state[key], before[key]) for key in state)


def test_a_single_file_checkpoint_is_merged_under_its_prefix_only(net):
    unet = tiny_unet()
    state = original_names(unet.state_dict())
    state |= {f"control_model.{key}": tensor for key, tensor in unet.state_dict().items()}
    merged = hn.merge_state_dict(state, net)
    expected = hn.merge_state_dict(unet.state_dict(), net)
    for key, tensor in merged.items():
        if key.startswith(ORIGINAL_PREFIX):
            assert torch.equal(tensor, expected[key.removeprefix(ORIGINAL_PREFIX)])
        else:
            assert tensor is state[key]


def test_the_moving_average_of_a_checkpoint_is_merged_too(net):
    unet, average = tiny_unet(torch.float16), tiny_unet()
    state = original_names(unet.state_dict())
    state |= {
        f"model_ema.diffusion_model{key.replace('.', '')}": tensor for key, tensor in average.state_dict().items()
    }
    merged = hn.merge_state_dict(state, net)
    expected = hn.merge_state_dict(average.state_dict(), net)
    for key, tensor in expected.items():
        assert torch.equal(merged[f"model_ema.diffusion_model{key.replace('.', '')}"], tensor)
    assert merged.keys() == state.keys()


def test_self_attention_by_another_name_is_told_by_its_widths():
    state = {
        f"mid.attention.to_{s}.{p}": torch.randn(*([8] if p == "bias" else [8, 8]))
        for s, p in [("q", "weight"), ("k", "weight"), ("v", "weight"), ("out.0", "weight"), ("out.0", "bias")]
    }
    net = make_net((8,), activation=None)
    assert not torch.equal(
        hn.merge_state_dict(state, net, targets="attn1")["mid.attention.to_k.weight"],
        state["mid.attention.to_k.weight"],
    )
    with pytest.raises(hn.AdapterError, match="widths none in attn2"):
        hn.merge_state_dict(state, net, targets="attn2")


def joint_attention(bias=True):
    """Attention of an image [8] with a text [12] in one softmax, as in SD 3."""
    from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0

    attention = Attention(
        8, added_kv_proj_dim=12, heads=2, dim_head=4, context_pre_only=False, bias=bias, added_proj_bias=bias,
        processor=JointAttnProcessor2_0(),
    )  # fmt: skip
    return nn.ModuleDict({"attn": attention}).double().requires_grad_(False)


def test_joint_attention_takes_the_constants_in_its_own_biases(net):
    model = joint_attention()
    twin = copied(model)
    image, text = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 7, 12, dtype=torch.float64)
    changed = hn.merge(model, net.double(), 0.5)
    merged = hn.merge_state_dict(twin.state_dict(), net, 0.5)
    assert all(torch.equal(merged[key], tensor) for key, tensor in model.state_dict().items())
    hn.attach(twin, net, 0.5)
    assert changed == ["attn", "attn.added"]
    for actual, expected in zip(model.attn(image, text), twin.attn(image, text), strict=True):
        assert relative_error(actual, expected) < 1e-12


def test_joint_attention_without_biases_is_refused(net):
    with pytest.raises(ValueError, match="attn has add_k_proj and no bias at to_k"):
        hn.merge(joint_attention(bias=False), net)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"activation": "relu"}, "has activation 'relu'; attach it"),
        ({"activation": None, "layer_norm": True}, "has layer_norm=True; attach it"),
        ({"activation": "silu", "layer_norm": True}, "has activation 'silu' and layer_norm=True"),
    ],
)
def test_a_network_that_is_not_affine_is_refused(options, what):
    with pytest.raises(ValueError, match=f"only an affine hypernetwork .* 'hypernetwork' {what}"):
        hn.merge(tiny_unet(), make_net(**options))


def test_dropout_does_not_matter_in_eval_mode_and_training_mode_is_refused():
    net = make_net(activation=None, dropout_structure=(0, 0.5, 0))
    assert len(hn.merge(tiny_unet(), net)) == 14
    with pytest.raises(ValueError, match=r"'hypernetwork' is in training mode.*call net.eval\(\)"):
        hn.merge(tiny_unet(), net.train())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nets": []}, "one or more hypernetworks; none was given"),
        ({"nets": "style.pt"}, "must be a Hypernetwork, not str"),
        ({"strengths": [1.0, 0.5]}, "2 strengths are given for 1 hypernetworks"),
        ({"strengths": float("nan")}, "strength must be a finite number, not nan"),
        ({"strengths": "1"}, "strength must be a finite number, not '1'"),
        ({"strengths": 10**400}, "strength must be a finite number, not 1000"),
        ({"strengths": True}, "strength must be a finite number, not True"),
        ({"targets": ["attn3"]}, "targets must be some of attn1, attn2"),
        ({"targets": []}, "targets must be some of"),
        ({"model": 3}, "must be a diffusers pipeline or a torch module, not int"),
    ],
)
def test_wrong_arguments_are_named(net, arguments, message):
    with pytest.raises(ValueError, match=message):
        hn.merge(**{"model": tiny_unet(), "nets": net, **arguments})


def test_a_network_for_another_model_is_refused_as_by_attach(net):
    other = make_net((768,), activation=None)
    messages = []
    for call in (lambda: hn.attach(tiny_unet(), other), lambda: hn.merge(tiny_unet(), [net, other])):
        with pytest.raises(hn.AdapterError, match=r"widths \[8, 12, 16\] in attn1, attn2.*is for \[768\]") as caught:
            call()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    with pytest.raises(hn.AdapterError, match="the checkpoint has attention contexts of the widths none"):
        hn.merge_state_dict({"conv.weight": torch.ones(2)}, net)


def break_last_layer(unet, breaking):
    """Spoils the attention layer that is merged last."""
    breaking(list(attention_layers(unet).values())[-1])


def without_bias(layer):
    layer.to_out[0].bias = None


def quantised(layer):
    layer.to_v.weight = nn.Parameter(torch.ones_like(layer.to_v.weight, dtype=torch.int8), requires_grad=False)


def wrapped(layer):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.base_layer, self.in_features = inner, inner.in_features

    layer.to_v = Wrapper(layer.to_v)


def offloaded(layer):
    layer.to_v.to("meta")


def projections_fused(layer):
    layer.fused_projections = True


def keys_normalised(layer):
    layer.norm_k = nn.LayerNorm(16)


def too_large(layer):
    nn.init.constant_(layer.to_out[0].bias, float("inf"))


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (without_bias, "has a bias neither at to_v nor at to_out.0"),
        (quantised, "to_v.weight is torch.int8; load the model in float32"),
        (wrapped, "to_v is not a plain linear layer; remove LoRAs"),
        (offloaded, "without data"),
        (projections_fused, r"call unfuse_qkv_projections\(\)"),
        (keys_normalised, "has norm_k and no bias at to_k"),
        (too_large, r"to_out.0.bias would leave the range of torch.float32"),
    ],
)
def test_a_layer_that_cannot_take_the_change_leaves_the_whole_model_as_it_was(net, breaking, message):
    unet = tiny_unet()
    break_last_layer(unet, breaking)
    before = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        hn.merge(unet, net)
    assert all(t.is_meta or torch.equal(t, before[key]) for key, t in unet.state_dict().items())


def test_a_half_precision_weight_that_would_overflow_is_refused(net):
    with pytest.raises(ValueError, match=r"leave the range of torch.float16; lower the strength"):
        hn.merge(tiny_unet(torch.float16), net, 1e6)
