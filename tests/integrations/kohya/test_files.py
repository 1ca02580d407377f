"""The files that kohya's trainers write and read with the network module."""

import pytest
import torch

import hnkernels as hn
from hnkernels.adapter.layers import find_attention
from hnkernels.checkpoint import CheckpointError
from hnkernels.integrations import kohya
from tests.adapter.hosts import OriginalUNet
from tests.integrations.kohya.trainer import (
    KINDS,
    TEXT_WIDTH,
    WIDTH,
    SDXLNames,
    call,
    diffusers_names,
    metadata,
    ready,
    start,
)
from tests.models import randomise, relative_error


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


def test_a_format_that_cannot_hold_the_network_is_refused_before_training(unet, tmp_path):
    for arguments, extension in (({}, "ckpt"), ({"kind": "weights"}, "pt")):
        network = kohya.create_network(1.0, None, 1, None, None, unet, **arguments)
        with pytest.raises(ValueError, match="--save_model_as safetensors"):
            network.prepare_network(type("Args", (), {"save_model_as": extension}))
        with pytest.raises(ValueError, match="--save_model_as safetensors"):
            network.save_weights(str(tmp_path / f"x.{extension}"), None, None)
