"""The nodes for ComfyUI that read a network and let it act, on a model with its interface, held to ``attach``."""

from __future__ import annotations

import copy

import pytest
import torch

import hnkernels as hn
from hnkernels.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from hnkernels.integrations.patcher.context_patch import ContextPatch
from hnkernels.integrations.patcher.spots import Spot
from tests.checkpoint.a1111_files import flat_dict, pair, write
from tests.integrations.nodes import apply, attached, inputs, node, weight_net, where
from tests.integrations.patched_unet import make_patcher, sample
from tests.models import (
    FORWARD_TOLERANCE,
    TEXT_WIDTH,
    TOKENS,
    UNET_TOLERANCE,
    WIDTHS,
    make_net,
    reference_of,
    relative_error,
)


def test_every_node_has_a_title_and_says_what_it_takes_and_gives(comfy):
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    for kind in NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(kind, kind.FUNCTION))
        assert kind.RETURN_TYPES
        assert "required" in kind.INPUT_TYPES()


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_a_network_acts_as_attached(activation, layer_norm):
    patcher, net, (x, context) = make_patcher(), make_net(activation=activation, layer_norm=layer_norm), inputs()
    assert relative_error(sample(apply(patcher, net), x, context), sample(patcher, x, context)) > 0.01
    expected = attached(patcher, [net], x, context)
    assert relative_error(sample(apply(patcher, net), x, context), expected) < UNET_TOLERANCE


def test_a_patch_gives_what_the_reference_gives():
    net, spot = make_net(activation="tanh", layer_norm=True), Spot("middle", 0, 0)
    patch = ContextPatch(net, {spot: {"k": 0.5, "v": 2.0}})
    q, k, v = torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    told = {"block": ("middle", 0), "block_index": 0}
    assert patch(q, k, v, told)[0] is q
    for got, given, mlp, strength in zip(patch(q, k, v, told)[1:], (k, v), net[16], (0.5, 2.0), strict=True):
        reference = reference_of(mlp)
        reference.multiplier = strength
        assert relative_error(got, reference(given.double())) < FORWARD_TOLERANCE


@pytest.mark.parametrize(
    ("given", "table"),
    [
        ({"down": 0.5}, {"down": 0.5}),
        ({"mid": 0, "attn2": 2.0}, {"mid": 0, "attn2": 2.0}),
        ({"k": 0}, {"k": 0}),
        ({"v": 0, "attn1": 0.3}, {"v": 0, "attn1": 0.3}),
        ({"table": '{"up": {"block_1": 0.2, "k": -1}}'}, {"up": {"block_1": 0.2, "k": -1}}),
        ({"table": '{"input_blocks.3.*": 0}', "up": 0.5}, {"input_blocks.3.*": 0, "up": 0.5}),
    ],
)
def test_strengths_by_place_are_those_of_attach(given, table):
    patcher, net, (x, context) = make_patcher(depth=2), make_net(), inputs()
    patched = apply(patcher, net, 0.7, where=where(**given))
    expected = attached(patcher, [net], x, context, [{"*": 0.7, **table}])
    assert relative_error(sample(patched, x, context), expected) < UNET_TOLERANCE


def test_nodes_chain_in_their_order():
    patcher, (x, context) = make_patcher(), inputs()
    first, second = make_net(activation="relu"), make_net((TEXT_WIDTH, WIDTHS[0]), activation="tanh")
    patched = apply(apply(patcher, first, 0.8), second, 1.3)
    expected = attached(patcher, [first, second], x, context, [0.8, 1.3])
    assert relative_error(sample(patched, x, context), expected) < UNET_TOLERANCE


def test_the_model_before_the_node_is_left_as_it_was():
    patcher, net, (x, context) = make_patcher(), make_net(), inputs()
    before, state = sample(patcher, x, context), copy.deepcopy(patcher.model.state_dict())
    patched = apply(patcher, net)
    sample(patched, x, context)
    assert patcher.model_options == {"transformer_options": {}}
    assert torch.equal(sample(patcher, x, context), before)
    assert all(torch.equal(value, state[key]) for key, value in patcher.model.state_dict().items())


def test_without_strength_there_is_no_patch():
    patcher, net = make_patcher(), make_net()
    assert apply(patcher, net, 0.0) is patcher
    assert "patches" not in apply(patcher, net, where=where(down=0, mid=0, up=0)).model_options["transformer_options"]


def test_a_compiled_model_computes_the_same():
    patcher, net, (x, context) = make_patcher(), make_net(activation="relu"), inputs()
    patched = apply(patcher, net)
    expected = sample(patched, x, context)
    compiled = torch.compile(patcher.model.diffusion_model, backend="eager")
    for _ in range(2):
        with torch.no_grad():
            got = compiled(x, context, patched.model_options["transformer_options"])
        assert relative_error(got, expected) < UNET_TOLERANCE


def test_a_graph_made_without_the_network_is_made_again(monkeypatch):
    patcher, net, (x, context) = make_patcher(), make_net(activation="relu"), inputs()
    plain, patched, resets = sample(patcher, x, context), apply(patcher, net), []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    (wrapper,) = patched.wrappers["apply_model"]["hnkernels"]

    def model(control):  # until it is made again, what was compiled without the network
        control["output"].pop()
        return sample(patched, x, context) if resets else plain

    expected = sample(patched, x, context)
    for _ in range(3):
        got = wrapper(model, control={"output": [1]})
        assert relative_error(got, expected) < UNET_TOLERANCE
    assert resets == [1]


def test_a_graph_that_reaches_the_network_is_kept(monkeypatch):
    patcher, (x, context) = make_patcher(), inputs()
    patched = apply(patcher, make_net())
    monkeypatch.setattr(torch.compiler, "reset", lambda: pytest.fail("compiled again"))
    (wrapper,) = patched.wrappers["apply_model"]["hnkernels"]
    wrapper(lambda: sample(patched, x, context))
    wrapper(lambda: None)  # as nodes do that leave out calls of the model


def test_a_clone_does_not_copy_the_network():
    patched = apply(make_patcher(), make_net())
    kept = [m.model_options["transformer_options"]["patches"]["attn1_patch"][0] for m in (patched, patched.clone())]
    assert kept[0] is kept[1]


def test_the_network_follows_the_context_and_keeps_its_dtype():
    patcher, net, (x, context) = make_patcher(), make_net(), inputs()
    patched = apply(patcher, net)
    expected = attached(patcher, [net], x, context)
    patched.model_patches_to(torch.device("cpu"))
    patched.model_patches_to(torch.float8_e4m3fn)  # that of a model's storage
    assert net[8][0].linear[0].weight.dtype == torch.float32
    assert relative_error(sample(patched, x, context), expected) < UNET_TOLERANCE


def test_half_precision_models_get_half_precision_contexts():
    net, told = make_net(), {"block": ("middle", 0), "block_index": 0}
    patch = ContextPatch(net, {Spot("middle", 0, 0): {"k": 1.0, "v": 1.0}})
    q = torch.randn(1, 3, 16, dtype=torch.float16)
    _, k, v = patch(q, q, q, told)
    assert k.dtype == v.dtype == torch.float16
    eager, truth = copy.deepcopy(net[16][0]).half(), copy.deepcopy(net[16][0]).double()(q.double())
    assert relative_error(k, truth) <= 1.2 * relative_error(eager(q), truth)


def test_a_text_is_rewritten_once_per_call(monkeypatch):
    from hnkernels.integrations.patcher import context_patch

    patcher, net, (x, context) = make_patcher(), make_net((TEXT_WIDTH,)), inputs()
    patched, counted = apply(patcher, net), []
    real = context_patch.hyper_context_pair
    monkeypatch.setattr(context_patch, "hyper_context_pair", lambda *a, **o: counted.append(1) or real(*a, **o))
    with torch.inference_mode():
        first = sample(patched, x, context)
    assert len(counted) == 1
    context.mul_(2)  # nothing is kept for the next call
    assert relative_error(sample(patched, x, context), first) > 0.01
    assert relative_error(sample(patched, x, context), attached(patcher, [net], x, context)) < UNET_TOLERANCE


@pytest.mark.parametrize(("rows", "acting"), [("positive", 1), ("negative", 0)])
def test_rows_act_as_with_per_row(rows, acting):
    patcher, net, (x, context) = make_patcher(), make_net(), inputs(4)
    got = sample(apply(patcher, net, 0.6, rows=rows), x, context, cond_or_uncond=[1, 0])
    strength = hn.PerRow(*(0.6 if part == acting else 0 for part in range(2)))
    assert relative_error(got, attached(patcher, [net], x, context, [strength])) < UNET_TOLERANCE


def test_a_call_for_prompts_it_does_not_act_on_computes_nothing(monkeypatch):
    from hnkernels.integrations.patcher import context_patch

    patcher, net, (x, context) = make_patcher(), make_net(), inputs()
    expected = sample(patcher, x, context)
    monkeypatch.setattr(context_patch.ContextPatch, "_rewritten", lambda *given: pytest.fail("computed"))
    got = sample(apply(patcher, net, rows="positive"), x, context, cond_or_uncond=[1])
    assert torch.equal(got, expected)


SIGMAS = torch.tensor([10.0, 7.5, 5.0, 2.5, 0.0])


@pytest.mark.parametrize(
    ("given", "factors"),
    [
        ((0.25, 0.5, "", "one per step"), [0, 1, 1, 0]),
        ((0.0, 1.0, "0.2, 0.4, 1", "one per step"), [0.2, 0.4, 1, 1]),
        ((0.0, 1.0, "0 1", "over all steps"), [0, 1 / 3, 2 / 3, 1]),
        ((0.0, 0.6, "0.5", "one per step"), [0.5, 0.5, 0.5, 0]),
    ],
)
def test_the_strength_follows_the_steps(given, factors):
    patcher, net, (x, context) = make_patcher(), make_net(), inputs()
    patched = apply(patcher, net, when=node("Timing").timing(*given)[0])
    for sigma, factor in zip(SIGMAS, factors, strict=False):
        got = sample(patched, x, context, sigmas=sigma.expand(2), sample_sigmas=SIGMAS)
        expected = attached(patcher, [net], x, context, [factor])
        assert relative_error(got, expected) < UNET_TOLERANCE, sigma


def test_between_two_steps_the_earlier_one_counts():
    timing = node("Timing").timing(0.0, 1.0, "1 2 3 4", "one per step")[0].clock(lambda share: 10 * (1 - share))
    assert timing.factor({"sigmas": torch.tensor([6.0]), "sample_sigmas": SIGMAS}) == 2
    assert timing.factor({"sigmas": torch.tensor([7.5], dtype=torch.bfloat16), "sample_sigmas": SIGMAS}) == 2


def test_a_schedule_needs_what_the_sampler_says():
    clock = node("Timing").timing(0.0, 1.0, "1 2", "one per step")[0].clock(lambda share: 10 * (1 - share))
    with pytest.raises(ValueError, match=r"does not tell its patches 'sample_sigmas'.*remove the schedule"):
        clock.factor({"sigmas": torch.tensor([6.0])})


def test_what_a_node_is_given_is_checked(comfy):
    patcher, net = make_patcher(), make_net()
    with pytest.raises(ValueError, match="Apply Style Mixture"):
        apply(patcher, weight_net())
    with pytest.raises(ValueError, match="Apply Hypernetwork"):
        node("ApplyStyles").apply(patcher, net, "ink", 1.0)
    with pytest.raises(hn.AdapterError, match="for another model"):
        apply(patcher, make_net((320, 768)))
    with pytest.raises(ValueError, match="table of strengths is not JSON"):
        where(table="{down: 1}")
    with pytest.raises(ValueError, match="must be a JSON object"):
        where(table="[1]")
    with pytest.raises(ValueError, match="fits no attention layer"):
        apply(patcher, net, where=where(table='{"down": {"block_17": 0}}'))
    with pytest.raises(ValueError, match="start <= end"):
        node("Timing").timing(0.5, 0.2, "", "one per step")
    with pytest.raises(ValueError, match="numbers such as"):
        node("Timing").timing(0.0, 1.0, "much", "one per step")
    with pytest.raises(ValueError, match="must be finite numbers"):
        node("Timing").timing(0.0, 1.0, "1 nan", "one per step")
    patcher.model.diffusion_model = torch.nn.Linear(2, 2)
    with pytest.raises(hn.AdapterError, match="Stable Diffusion 1, 2 and XL"):
        apply(patcher, net)


@pytest.mark.parametrize("activate_output", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_files_of_a1111_act_as_the_reference(comfy, layer_norm, activate_output):
    options = {"activation": "relu", "layer_norm": layer_norm, "activate_output": activate_output}
    options["dropout_structure"] = [0, 0.3, 0]
    pairs = {dim: pair(dim, **options) for dim in (*WIDTHS, TEXT_WIDTH)}
    described = {"activation_func": "relu", "is_layer_norm": layer_norm, "activate_output": activate_output}
    content = flat_dict(pairs, **described, layer_structure=[1, 2, 1], dropout_structure=[0, 0.3, 0], use_dropout=True)
    write(comfy / "hypernetworks" / "style.pt", content)
    assert node("LoadHypernetwork").INPUT_TYPES()["required"]["name"][0] == ["style.pt"]
    net, about = node("LoadHypernetwork").load("style.pt", False)
    assert "relu" in about
    x, told = torch.randn(2, TOKENS, TEXT_WIDTH), {"block": ("middle", 0), "block_index": 0}
    patch = ContextPatch(net, {Spot("middle", 0, 0): {"k": 1.0, "v": 1.0}})
    for got, mlp in zip(patch(x, x, x, told)[1:], pairs[TEXT_WIDTH], strict=True):
        assert relative_error(got, mlp.double().eval()(x.double())) < FORWARD_TOLERANCE


def test_both_kinds_of_files_load(comfy):
    hn.save_hypernetwork(make_net(), comfy / "hypernetworks" / "a.safetensors")
    weight_net().save(comfy / "hypernetworks" / "b.safetensors")
    load = node("LoadHypernetwork").load
    assert isinstance(load("a.safetensors", False)[0], hn.Hypernetwork)
    net, about = load("b.safetensors", False)
    assert isinstance(net, hn.WeightHypernetwork)
    assert "ink, oil" in about
    changed = NODE_CLASS_MAPPINGS["HnkernelsLoadHypernetwork"].IS_CHANGED
    assert changed("a.safetensors", False) == (comfy / "hypernetworks" / "a.safetensors").stat().st_mtime
    with pytest.raises(ValueError, match="refresh"):
        load("gone.pt", False)
