"""The network module for kohya's trainers, called as they call it."""

import subprocess
import sys

import pytest
import torch

import hnkernels as hn
from hnkernels.adapter.layers import find_attention
from hnkernels.checkpoint import CheckpointError
from hnkernels.integrations import kohya
from tests.adapter.hosts import OriginalUNet
from tests.integrations import kohya_trainer
from tests.integrations.kohya_trainer import (
    TEXT_WIDTH,
    WIDTH,
    SDXLNames,
    diffusers_names,
    gradients,
    metadata,
    ready,
    start,
    step,
)
from tests.models import FORWARD_TOLERANCE, denoise, noise, prompt, randomise, relative_error, tiny_unet

KINDS = {"context": ("kind=context", "activation=silu"), "weights": ("kind=weights", "hidden_dim=16")}


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return OriginalUNet().requires_grad_(False)


@pytest.fixture
def x():
    return torch.randn(2, 4, 3, 3)


@pytest.fixture
def text():
    return torch.randn(2, 5, TEXT_WIDTH)


@pytest.fixture(params=KINDS)
def arguments(request):
    return KINDS[request.param]


def call(unet, x, text):
    with torch.no_grad():
        return unet(x, torch.tensor([10, 20]), text)


def test_training_changes_the_network_and_nothing_else(unet, x, text, arguments):
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    base = call(unet, x, text)
    network, groups = start(kohya, unet, *arguments)
    assert relative_error(call(unet, x, text), base) < FORWARD_TOLERANCE  # it starts at the base model
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for _ in range(20):
        losses.append(step(network, unet, x, text).item())
        torch.nn.utils.clip_grad_norm_(network.get_trainable_params(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[key], value) for key, value in unet.state_dict().items())


def test_the_learning_rate_is_the_unets_own_if_it_has_one(unet):
    network = kohya.create_network(1.0, None, 1, None, None, unet)
    assert network.prepare_optimizer_params([1e-5], 2e-4, 1e-4)[0][0]["lr"] == 2e-4
    assert network.prepare_optimizer_params(None, None, 1e-4)[0][0]["lr"] == 1e-4
    assert "lr" not in network.prepare_optimizer_params(None, None)[0][0]  # older trainers name no default


@pytest.mark.parametrize("prior", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(x, text, arguments, prior, monkeypatch):
    monkeypatch.setattr(kohya_trainer, "USE_REENTRANT", True)
    torch.manual_seed(0)
    unet = SDXLNames().double()
    network, _ = start(kohya, unet, *arguments)
    randomise(network.double(), 0.1)
    x, text = x.double(), text.double()
    step(network, unet, x, text)
    plain = gradients(network)
    unet.enable_gradient_checkpointing()
    step(network, unet, x, text, prior)
    assert relative_error(gradients(network), plain) < 1e-12
    assert not kohya_trainer.USE_REENTRANT  # each block would go through the network in a backward pass of its own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_trains_under_autocast_on_a_model_of_half_precision(unet, x, text, arguments, dtype):
    network, _ = start(kohya, unet.to(dtype), *arguments)
    randomise(network, 0.1)
    with torch.autocast("cpu", dtype):
        step(network, unet, x.to(dtype), text.to(dtype))
    assert all(p.dtype == torch.float32 for p in network.parameters())
    found = gradients(network)
    assert found.isfinite().all()
    assert found.any()


def test_a_prior_is_the_base_models(unet, x, text, arguments):
    base = call(unet, x, text)
    network, _ = start(kohya, unet, *arguments)
    randomise(network, 0.1)
    own = call(unet, x, text)
    assert not torch.equal(own, base)
    network.set_multiplier(0.0)
    assert torch.equal(call(unet, x, text), base)
    network.set_multiplier(1.0)
    assert torch.equal(call(unet, x, text), own)


def test_a_weight_hypernetwork_is_conditioned_on_the_text(unet, x, text):
    network, _ = start(kohya, unet, *KINDS["weights"])
    randomise(network, 0.1)
    network.eval()
    own = call(unet, x, text)
    network.adapter.detach()
    unet._forward_pre_hooks.clear()
    with hn.attach(unet, network.net) as adapter, adapter.condition(text):
        assert torch.equal(call(unet, x, text), own)


def test_a_sampling_pipeline_s_negative_half_runs_the_base_model(unet, x, text):
    base = call(unet, x, text)
    network, _ = start(kohya, unet, *KINDS["weights"])
    randomise(network, 0.1)

    class Pipeline:  # what a pipeline of the trainers has among its variables while it samples
        def __call__(self):
            do_classifier_free_guidance = True
            assert do_classifier_free_guidance
            return call(unet, x, text)

    sampled = Pipeline()()
    assert torch.equal(sampled[:1], base[:1])
    assert relative_error(sampled[1:], call(unet, x, text)[1:]) < FORWARD_TOLERANCE


def test_a_weight_hypernetwork_is_conditioned_on_one_style_of_several(unet, x, text):
    network, _ = start(kohya, unet, "kind=weights", "hidden_dim=16", "styles=ink, oil", "style=oil", dim=2)
    randomise(network, 0.1)
    step(network, unet, x, text)
    gradient = network.net.encoder.style_table.grad
    assert not gradient[0].any()
    assert gradient[1].any()
    assert {layer.rank for layer in network.net.layers} == {2}


def test_the_file_is_what_hnkernels_loads(unet, x, text, arguments, tmp_path):
    network, _ = start(kohya, unet, *arguments)
    randomise(network, 0.1)
    own = call(unet, x, text)
    file = tmp_path / "ink-000001.safetensors"
    network.save_weights(str(file), None, metadata(other="left out"))
    load = hn.load_hypernetwork if "kind=context" in arguments else hn.WeightHypernetwork.load
    net = load(file)
    origin = net.provenance
    assert (origin.name, origin.step) == ("ink", 30)
    assert (origin.sd_checkpoint, origin.sd_checkpoint_name) == ("ab" * 5, "model.safetensors")
    assert origin.training["ss_steps"] == "30"
    kind = "hypernetwork" if "kind=context" in arguments else "weight-hypernetwork"
    assert origin.training["modelspec.architecture"] == f"stable-diffusion-v1/{kind}"
    assert "other" not in origin.training
    network.adapter.detach()
    unet._forward_pre_hooks.clear()
    again, _ = kohya.create_network_from_weights(1.0, str(file), None, None, unet)
    ready(again, unet)
    assert torch.equal(call(unet, x, text), own)


def test_a_pt_file_has_the_widths_and_precision_that_a1111_loads(unet, tmp_path):
    network, _ = start(kohya, unet, "layer_structure=1,1.5,1", "activation=none", "layer_norm=true")
    network.save_weights(str(tmp_path / "ink.pt"), torch.float16, metadata())
    flat = torch.load(tmp_path / "ink.pt", weights_only=True)
    assert {key for key in flat if isinstance(key, int)} == {WIDTH, TEXT_WIDTH}
    assert flat[WIDTH][0]["linear.0.weight"].dtype == torch.float32
    assert (flat["step"], flat["name"], flat["sd_checkpoint"]) == (30, "ink", "ab" * 5)
    assert flat["layer_structure"] == [1, 1.5, 1]
    assert flat["is_layer_norm"] is True


def test_the_precision_of_a_safetensors_file_is_the_one_asked_for_and_is_trained_on_in_fp32(unet, arguments, tmp_path):
    network, _ = start(kohya, unet, *arguments)
    file = tmp_path / "ink.safetensors"
    network.save_weights(str(file), torch.bfloat16, None)
    assert all(p.dtype == torch.float32 for p in network.parameters())
    again, weights = kohya.create_network_from_weights(1.0, str(file), None, None, unet)
    assert again.net.provenance.name == "ink"
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert again.load_state_dict(weights, False).missing_keys == []


def test_training_goes_on_from_a_file(unet, arguments, tmp_path):
    network, _ = start(kohya, unet, *arguments)
    randomise(network, 0.1)
    network.save_weights(str(tmp_path / "ink.safetensors"), None, metadata())
    again, _ = start(kohya, OriginalUNet(), *arguments)
    assert again.load_weights(str(tmp_path / "ink.safetensors")) == "'ink', trained for 30 steps"
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))
    again.save_weights(str(tmp_path / "more.safetensors"), None, metadata())
    more, _ = kohya.create_network_from_weights(1.0, str(tmp_path / "more.safetensors"), None, None, unet)
    assert more.net.provenance.step == 60


@pytest.mark.parametrize(
    "arguments",
    [
        ("layer_structure=1,3,1",),
        ("activation=silu",),  # whose weights would fit
        ("layer_norm=true",),
        ("kind=weights", "hidden_dim=8"),
    ],
    ids=" ".join,
)
def test_a_file_of_another_structure_is_refused(unet, arguments, tmp_path):
    network, _ = start(kohya, unet, *arguments)
    network.save_weights(str(tmp_path / "ink.safetensors"), None, metadata())
    other, _ = start(kohya, OriginalUNet(), "layer_structure=1,2,1")
    with pytest.raises(ValueError, match="--dim_from_weights"):
        other.load_weights(str(tmp_path / "ink.safetensors"))


def test_a_file_that_says_itself_what_it_holds_takes_no_other_arguments(unet, tmp_path):
    network, other = (start(kohya, OriginalUNet())[0] for _ in range(2))
    network.save_weights(str(tmp_path / "ink.safetensors"), None, metadata())
    with pytest.raises(ValueError, match="says itself what network it holds"):
        kohya.create_network_from_weights(1.0, str(tmp_path / "ink.safetensors"), None, None, unet, activation="relu")
    weights = hn.WeightHypernetwork(model=OriginalUNet(), embedding_dim=TEXT_WIDTH, hidden_dim=8).generate_weights(
        torch.randn(1, TEXT_WIDTH)
    )
    weights.save(tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="generated weights"):
        other.load_weights(str(tmp_path / "weights.safetensors"))


def test_layers_with_the_original_repositories_names_are_saved_under_diffusers(x, text, tmp_path):
    unet = SDXLNames()
    network, _ = start(kohya, unet, "kind=weights", "hidden_dim=16", "target_layers=down,up.attn2", "projections=k,v")
    randomise(network, 0.1)
    own = call(unet, x, text)
    file = str(tmp_path / "ink.safetensors")
    network.save_weights(file, None, metadata())
    saved = {layer.attention for layer in hn.WeightHypernetwork.load(file).layers}
    names = diffusers_names(unet)
    assert saved == {n for n in names if n.startswith("down") or (n.startswith("up") and n.endswith("attn2"))}
    assert {layer.attention for layer in network.net.layers} <= {layer.name for layer in find_attention(unet)}
    network.adapter.detach()
    unet._forward_pre_hooks.clear()
    again, _ = kohya.create_network_from_weights(1.0, file, None, None, unet, for_inference=True)
    again.apply_to([object()], unet)  # the samplers do not say what is to be trained
    assert torch.equal(call(unet, x, text), own)


def test_an_affine_network_merges_into_the_unet(unet, x, text, tmp_path):
    network, _ = start(kohya, unet, "activation=none")
    randomise(network, 0.1)
    network.save_weights(str(tmp_path / "ink.safetensors"), None, metadata())
    network.adapter.detach()
    base = kohya.create_network_from_weights(0.5, str(tmp_path / "ink.safetensors"), None, None, unet, None, True)[0]
    assert base.is_mergeable()
    with hn.attach(unet, base.net, strength=0.5):
        attached = call(unet, x, text)
    base.merge_to(None, unet, None, torch.float32, "cpu")
    assert relative_error(call(unet, x, text), attached) < 1e-5


def test_what_cannot_be_merged_is_refused(unet):
    for arguments, message in ((("activation=relu",), "only an affine"), (KINDS["weights"], "hnkernels generate")):
        network = kohya.create_network(1.0, None, 1, None, None, unet, **dict(a.split("=") for a in arguments))
        network.eval()
        assert not network.is_mergeable()
        with pytest.raises(ValueError, match=message):
            network.merge_to(None, unet, None, torch.float32, "cpu")


@pytest.mark.parametrize(("text_encoder", "unet_too"), [(True, True), (True, False), (False, False)])
def test_training_the_text_encoder_is_refused(unet, text_encoder, unet_too):
    network = kohya.create_network(1.0, None, 1, None, None, unet)
    with pytest.raises(ValueError, match="--network_train_unet_only"):
        network.apply_to(object(), unet, text_encoder, unet_too)


def test_a_format_that_cannot_hold_the_network_is_refused_before_training(unet, tmp_path):
    for arguments, extension in (({}, "ckpt"), ({"kind": "weights"}, "pt")):
        network = kohya.create_network(1.0, None, 1, None, None, unet, **arguments)
        with pytest.raises(ValueError, match="--save_model_as safetensors"):
            network.prepare_network(type("Args", (), {"save_model_as": extension}))
        with pytest.raises(ValueError, match="--save_model_as safetensors"):
            network.save_weights(str(tmp_path / f"x.{extension}"), None, None)


def test_dropout_is_that_of_hidden_units_or_of_ranks(unet):
    network, _ = start(kohya, unet, "layer_structure=1,2,2,1", dropout=0.25)
    assert network.net.config.dropout_structure == (0, 0.25, 0.25, 0)
    network, _ = start(kohya, OriginalUNet(), "kind=weights", "hidden_dim=8", "dropout=0.5", dropout=0.25)
    assert network.net.decoder.rank_dropout == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activaton": "relu"}, "did you mean 'activation'"),
        ({"kind": "lora"}, "must be one of context, weights"),
        ({"layer_structure": "1,x,1"}, "such as 1,2,1"),
        ({"layer_norm": "maybe"}, "must be true or false"),
        ({"layer_structure": "1,2"}, "start and end with 1"),
        ({"dropout": "0.1", "dropout_structure": "0,0.1,0"}, "give one of them"),
        ({"target_layers": "attn3"}, "attn1"),
        ({"kind": "weights", "activation": "relu"}, "not known for kind=weights"),
        ({"kind": "weights", "hidden_dim": "many"}, "must be an integer"),
        ({"kind": "weights", "styles": "ink,oil"}, "style=ink"),
        ({"kind": "weights", "style": "ink"}, r"build it with styles="),
        ({"kind": "weights", "styles": "ink,oil", "style": "inc"}, "did you mean 'ink'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_that_cannot_be_is_refused(unet, arguments, message):
    with pytest.raises(ValueError, match=message):
        kohya.create_network(1.0, None, 1, None, None, unet, **arguments)


def test_a_rank_for_a_network_that_has_none_is_named(unet):
    with pytest.warns(UserWarning, match="--network_dim 8 has no effect"):
        start(kohya, unet, dim=8)


def test_a_diffusers_unet_serves_too(arguments):
    torch.manual_seed(0)
    unet = tiny_unet()
    network, _ = start(kohya, unet, *arguments)
    randomise(network, 0.1)
    denoise(unet, noise(), prompt()).square().mean().backward()
    assert gradients(network).any()


def test_it_needs_nothing_that_the_trainers_pin_in_another_version():
    blocked = ["diffusers", "transformers", "accelerate", "huggingface_hub", "typer", "rich", "PIL", "tqdm"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import hnkernels.integrations.kohya"
    subprocess.run([sys.executable, "-c", code], check=True)
