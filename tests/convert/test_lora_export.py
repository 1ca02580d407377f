"""LoRAs of affine networks: what they keep, what they lose, and that diffusers loads them."""

import copy
import warnings

import pytest
import torch
from torch import nn

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.convert.merging import ORIGINAL_PREFIX
from tests.models import attention_layers, copied, denoise, make_net, noise, prompt, relative_error, tiny_unet

FACTORS = 1e-6  # the factors of a LoRA are rounded to fp32
PARTS = ("lora_A.weight", "lora_B.weight")


@pytest.fixture
def net():
    return make_net(activation=None).double()


def without_constants(net):
    twin = copy.deepcopy(net)
    for name, parameter in twin.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return twin


def with_lora(unet, state):
    """A copy of the UNet to whose weights the LoRA is added by hand."""
    twin = copied(unet)
    for name in {key.removeprefix("unet.").rsplit(".lora_", 1)[0] for key in state}:
        down, up = (state[f"unet.{name}.{part}"].double() for part in PARTS)
        twin.get_submodule(name).weight.add_(up @ down)
    return twin


def matrices(net, unet):
    """What merging adds to each projection, in float64."""
    state = unet.state_dict()
    merged = hn.merge_state_dict(state, net)
    return {k: merged[k] - t for k, t in state.items() if k.endswith(("to_k.weight", "to_v.weight"))}


def outputs(unet):
    torch.manual_seed(1)
    with torch.no_grad():
        return denoise(unet, noise(dtype=torch.float64), prompt(dtype=torch.float64))


def test_keys_and_shapes_are_those_of_diffusers(net):
    unet = tiny_unet()
    state, report = hn.to_lora(net, unet, 3)
    projections = {f"{n}.to_{s}": getattr(m, f"to_{s}") for n, m in attention_layers(unet).items() for s in "kv"}
    assert state.keys() == {f"unet.{name}.{part}" for name in projections for part in PARTS}
    for name, linear in projections.items():
        assert state[f"unet.{name}.lora_A.weight"].shape == (3, linear.in_features)
        assert state[f"unet.{name}.lora_B.weight"].shape == (linear.out_features, 3)
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in state.values())
    assert report.rank == 3
    assert [layer.name for layer in report.layers] == list(projections)


@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_at_full_rank_only_the_constants_are_lost(net, strength):
    unet = tiny_unet(torch.float64)
    state, report = hn.to_lora(net, unet, 1000, strength)
    assert report.rank == 16  # the widest layers' own
    assert report.worst < FACTORS
    twin = copied(unet)
    hn.merge(twin, without_constants(net), strength)
    assert relative_error(outputs(with_lora(unet, state)), outputs(twin)) < FACTORS
    hn.merge(unet, net, strength)
    assert relative_error(outputs(twin), outputs(unet)) > 1e-3  # the constants do matter, and the report says so
    assert report.dropped > 0.1


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_error_is_the_least_that_the_rank_allows_and_is_reported(net, rank):
    unet = tiny_unet(torch.float64)
    state, report = hn.to_lora(net, unet, rank)
    deltas = matrices(net, unet)
    for layer in report.layers:
        delta = deltas[f"{layer.name}.weight"]
        down, up = (state[f"unet.{layer.name}.{part}"].double() for part in PARTS)
        assert down.shape[0] == rank
        singular = torch.linalg.svdvals(delta)
        least = (singular[rank:].norm() / singular.norm()).item()
        assert layer.error == pytest.approx(relative_error(up @ down, delta), rel=1e-9)
        assert layer.error == pytest.approx(least, rel=1e-5, abs=FACTORS)
    assert report.worst == max(layer.error for layer in report.layers)
    assert report.mean == pytest.approx(sum(layer.error for layer in report.layers) / 28)


def test_the_lost_constants_are_reported_on_v_alone(net):
    unet = tiny_unet(torch.float64)
    report = hn.to_lora(net, unet, 4)[1]
    deltas = matrices(net, unet)
    for layer in report.layers:
        attention = unet.get_submodule(layer.name.rsplit(".", 1)[0])
        zero = torch.zeros(attention.to_v.in_features, dtype=torch.float64)
        f = net[len(zero)][1].linear
        size, constant = deltas[f"{layer.name}.weight"].norm(), (attention.to_v.weight @ f(zero)).norm()
        expected = (constant / (size**2 + constant**2).sqrt()).item() if layer.name.endswith("to_v") else 0.0
        assert layer.dropped == pytest.approx(expected)
    assert report.dropped == max(layer.dropped for layer in report.layers)
    assert hn.to_lora(without_constants(net), unet, 4)[1].dropped == 0


def test_with_biases_nothing_is_lost(net):
    unet = tiny_unet(torch.float64)
    state, report = hn.to_lora(net, unet, 16, biases=True)
    assert report.dropped == 0
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    f = net[12][1].linear
    constant = unet.get_submodule(name).to_v.weight @ f(torch.zeros(12, dtype=torch.float64))
    assert relative_error(state[f"unet.{name}.to_v.lora_B.bias"], constant) < FACTORS


def test_targets_and_widths_choose_the_layers():
    unet = tiny_unet()
    names = {layer.name for layer in hn.to_lora(make_net((8, 12), activation=None), unet, 2, targets="attn1")[1].layers}
    layers = attention_layers(unet, "attn1").items()
    assert names == {f"{n}.to_{s}" for n, m in layers for s in "kv" if m.to_k.in_features == 8}


def test_pipelines_and_state_dicts_are_accepted(net):
    class Pipeline:
        unet = tiny_unet()

    expected = hn.to_lora(net, Pipeline.unet, 2)
    for model in (Pipeline(), Pipeline.unet.state_dict()):
        state, report = hn.to_lora(net, model, 2)
        assert all(torch.equal(state[key], tensor) for key, tensor in expected[0].items())
        assert sorted(report.layers, key=str) == sorted(expected[1].layers, key=str)


def test_a_stream_that_does_nothing_has_no_error(net):
    for width in net:
        for parameter in net[width][0].parameters():
            nn.init.zeros_(parameter)
    report = hn.to_lora(net, tiny_unet(), 2)[1]
    assert {layer.error for layer in report.layers if layer.name.endswith("to_k")} == {0.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank must be an integer >= 1, not 0"),
        ({"rank": 2.0}, "rank must be an integer >= 1, not 2.0"),
        ({"rank": True}, "rank must be an integer >= 1, not True"),
        ({"strength": float("inf")}, "strength must be a finite number, not inf"),
        ({"strength": 0}, "at this strength the network does nothing"),
        ({"targets": "attn3"}, "targets must be some of attn1, attn2"),
        ({"net": make_net(activation="relu")}, "only an affine hypernetwork .* has activation 'relu'"),
        ({"net": make_net(activation=None).train()}, "is in training mode"),
        ({"net": "style.pt"}, "must be a Hypernetwork, not str"),
        ({"model": {f"{ORIGINAL_PREFIX}a.attn1.to_k.weight": torch.ones(2, 2)}}, "needs diffusers' names of layers"),
        ({"model": "folder"}, "must be a diffusers pipeline or a torch module, not str"),
    ],
)
def test_wrong_arguments_are_named(net, arguments, message):
    with pytest.raises(ValueError, match=message):
        hn.to_lora(**{"net": net, "model": tiny_unet(), "rank": 4, **arguments})


def test_a_network_for_another_model_is_refused():
    with pytest.raises(hn.AdapterError, match="it is for another model"):
        hn.to_lora(make_net((768,), activation=None), tiny_unet(), 4)


@pytest.mark.parametrize("biases", [False, True])
def test_diffusers_loads_it(biases, tmp_path):
    pytest.importorskip("peft", reason="diffusers loads LoRAs with peft")
    import safetensors.torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(TINY_SD, local_files_only=True)
    net = make_net((48, 80, 96), std=0.05, activation=None)
    state, report = hn.to_lora(net, pipe, 96, 0.5, biases=biases)
    safetensors.torch.save_file(state, tmp_path / "lora.safetensors")
    twin = copied(pipe.unet)
    hn.merge(twin, net if biases else without_constants(net), 0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lora_bias=True.*")  # that it cannot be fused
        pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 96)
    with torch.no_grad():
        # Some fifty layers in fp32, and factors in fp32.
        assert relative_error(denoise(pipe.unet, x, text), denoise(twin, x, text)) < 2e-5
    assert report.worst < FACTORS
