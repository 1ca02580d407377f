"""The nodes for ComfyUI that change a model's weights, held to generated weights, ``merge`` and ``to_lora``."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file

import hnkernels as hn
from hnkernels.integrations.comfyui.weights import style_mixture
from tests.integrations.conftest import load_lora_for_models
from tests.integrations.nodes import apply, attached, inputs, node, weight_net, where
from tests.integrations.patched_unet import make_patcher, sample
from tests.models import UNET_TOLERANCE, make_net, relative_error


@pytest.mark.parametrize("given", [{}, {"attn2": 0.5, "table": '{"up": {"k": 0}}'}])
def test_a_style_mixture_acts_as_generated(comfy, given):
    patcher, net, (x, context) = make_patcher(), weight_net(), inputs()
    got = sample(node("ApplyStyles").apply(patcher, net, "ink: 0.7, oil: 0.3", 0.9, where(**given))[0], x, context)
    weights = net.generate_weights({"ink": 0.7, "oil": 0.3}).scaled(0.9)
    if given:
        weights = weights.scaled({"attn2": 0.5}).scaled({"up.k": 0})
    changed, paths = copy.deepcopy(patcher), dict(patcher.model.diffusion_model.named_modules())
    assert relative_error(got, sample(patcher, x, context)) > 0.01
    blocks = {"down_blocks.0.attentions.0": "input_blocks.1.1", "down_blocks.1.attentions.0": "input_blocks.3.1"}
    blocks |= {f"up_blocks.{i // 2}.attentions.{i % 2}": f"output_blocks.{i}.1" for i in range(4)}
    blocks["mid_block.attentions.0"] = "middle_block.1"
    for layer in weights.layers:
        block, _, rest = layer.name.partition(".transformer_blocks.")
        path = f"{blocks[block]}.transformer_blocks.{rest}"
        assert path in paths
        changed.model.diffusion_model.get_submodule(path).weight.data += weights.dense(layer.name)[0]
    assert relative_error(got, sample(changed, x, context)) < UNET_TOLERANCE


def test_weights_of_another_model_are_refused(comfy):
    net = hn.WeightHypernetwork(hidden_dim=4, rank=1, styles=("ink",), model="sd15")
    with pytest.raises(hn.AdapterError, match="for another base model"):
        node("ApplyStyles").apply(make_patcher(), net, "ink", 1.0)


@pytest.mark.parametrize("text", ["", "ink: much", "ink, ink"])
def test_a_mixture_that_says_nothing_clear_is_refused(text):
    with pytest.raises(ValueError, match="style"):
        style_mixture(text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merged_models_are_those_of_merge(comfy, dtype):
    patcher, net = make_patcher(), make_net(activation=None)
    patcher.model.to(dtype)
    merged = node("MergeHypernetwork").merge(patcher, net, 0.6, "attn1 and attn2")[0]
    expected = copy.deepcopy(patcher.model.diffusion_model)
    hn.merge(expected, net, 0.6)
    before = copy.deepcopy(patcher.model.state_dict())
    with merged.weights():
        for key, value in expected.state_dict().items():
            got = patcher.model.state_dict()[f"diffusion_model.{key}"]
            assert relative_error(got, value) < (1e-6 if dtype == torch.float32 else 1e-12), key
    assert all(torch.equal(value, before[key]) for key, value in patcher.model.state_dict().items())


def test_a_merged_model_acts_as_attached_with_the_loras_before_it(comfy):
    patcher, net, second, (x, context) = make_patcher(), make_net(activation=None), make_net(activation=None), inputs()
    patcher = node("ApplyStyles").apply(patcher, weight_net(), "ink", 1.0)[0]
    merge = node("MergeHypernetwork").merge
    once = merge(patcher, net, 0.6, "attn1 and attn2")[0]
    assert relative_error(sample(once, x, context), sample(apply(patcher, net, 0.6), x, context)) < UNET_TOLERANCE
    # W (I + A) is what the second is merged into, so that the context meets the second first.
    twice = merge(once, second, 1.0, "attn2")[0]
    expected = sample(apply(apply(patcher, second, where=where(attn1=0)), net, 0.6), x, context)
    assert relative_error(sample(twice, x, context), expected) < UNET_TOLERANCE


def test_only_affine_networks_are_merged(comfy):
    with pytest.raises(ValueError, match="only an affine hypernetwork"):
        node("MergeHypernetwork").merge(make_patcher(), make_net(activation="relu"), 1.0, "attn1")
    with pytest.raises(ValueError, match="Apply Style Mixture"):
        node("MergeHypernetwork").merge(make_patcher(), weight_net(), 1.0, "attn1")


def test_an_exported_lora_does_what_the_network_does(comfy):
    patcher, net, (x, context) = make_patcher(), make_net(activation=None), inputs()
    for width in net:  # what a LoRA cannot hold
        for mlp in net[width]:
            for layer in mlp.layers():
                torch.nn.init.zeros_(layer.linear.bias)
    given = node("ExportLora").export(patcher, net, 0.8, "", 64, "loras/style")
    (report,), path = given["result"], comfy / "output" / "loras" / "style_00001_.safetensors"
    assert str(path) in report
    assert given["ui"] == {"text": (report,)}
    state = load_file(path)
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k.lora_up.weight" in state
    patched = load_lora_for_models(patcher, None, _in_original_names(state), 1.0, 0.0)[0]
    expected = attached(patcher, [net], x, context, [0.8])
    assert relative_error(sample(patched, x, context), expected) < UNET_TOLERANCE


def test_an_exported_mixture_is_the_generated_one(comfy):
    patcher, net, (x, context) = make_patcher(), weight_net(), inputs()
    node("ExportLora").export(patcher, net, 0.8, "oil", 4, "style")
    state = load_file(comfy / "output" / "style_00001_.safetensors")
    patched = load_lora_for_models(patcher, None, _in_original_names(state), 1.0, 0.0)[0]
    expected = sample(node("ApplyStyles").apply(patcher, net, "oil", 0.8)[0], x, context)
    assert relative_error(sample(patched, x, context), expected) < UNET_TOLERANCE


def _in_original_names(state):
    """Keys that the double of the loader knows, which has no table of diffusers' names."""
    names = {f"up_blocks_{i // 2}_attentions_{i % 2}": f"output_blocks_{i}_1" for i in range(4)}
    names |= {"down_blocks_0_attentions_0": "input_blocks_1_1", "down_blocks_1_attentions_0": "input_blocks_3_1"}
    names["mid_block_attentions_0"] = "middle_block_1"
    renamed = {}
    for key, value in state.items():
        for old, new in names.items():
            key = key.replace(f"_{old}_", f"_{new}_")
        renamed[key] = value
    return renamed
