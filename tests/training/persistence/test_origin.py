"""What files of trained networks say to other programs: base model, settings, tags."""

import json

import pytest
import safetensors
import torch

import hnkernels as hn
from hnkernels.training.config import TrainingConfig
from hnkernels.training.persistence.origin import describe_training

SHA256 = "0123456789abcdef" * 4
CAPTIONS = {"10_cat": ["cat, red , cat", "cat,,black"], "dog": ["a dog; big"]}


def described(net=None, config=None, **options):
    net = net or hn.Hypernetwork((8,), name="style")
    options = {"steps": 90, "end": 100, "base_version": "sd_v1", **options}
    describe_training(net, TrainingConfig.of(config), **options)
    return net


def test_the_names_and_forms_are_those_of_other_programs(tmp_path):
    config = {"learning_rate": 1e-4, "batch_size": 4, "snr_gamma": 5, "max_timestep": 500, "shuffle_tags": True}
    net = described(
        config=config,
        model_name="v1-5-pruned",
        model_sha256=SHA256,
        resolution=768,
        captions=CAPTIONS,
        date="2026-01-02",
    )
    hn.save_hypernetwork(net, tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    expected = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/hypernetwork",
        "modelspec.implementation": "hnkernels",
        "modelspec.title": "style",
        "modelspec.date": "2026-01-02",
        "modelspec.resolution": "768x768",
        "modelspec.timestep_range": "0,499",
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": "v1-5-pruned",
        "ss_new_sd_model_hash": SHA256,
        "ss_network_module": "hnkernels.Hypernetwork",
        "ss_steps": "90",
        "ss_max_train_steps": "100",
        "ss_learning_rate": "0.0001",
        "ss_batch_size_per_device": "4",
        "ss_resolution": "(768, 768)",
        "ss_min_snr_gamma": "5.0",
        "ss_shuffle_caption": "True",
        "ss_num_train_images": "3",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert json.loads(metadata["ss_tag_frequency"]) == {
        "10_cat": {"cat": 2, "black": 1, "red": 1},
        "dog": {"a dog; big": 1},
    }
    assert not any(value == "None" for value in metadata.values())


def test_the_pt_file_names_the_base_model(tmp_path):
    net = described(model_name="v1-5-pruned", model_sha256=SHA256)
    net.provenance.step = 90
    hn.save_hypernetwork(net, tmp_path / "a.pt")
    flat = torch.load(tmp_path / "a.pt", weights_only=True)
    assert (flat["sd_checkpoint"], flat["sd_checkpoint_name"], flat["step"]) == ("0123456789", "v1-5-pruned", 90)


def test_nothing_is_said_of_what_is_not_known():
    net = described()
    assert (net.provenance.sd_checkpoint, net.provenance.sd_checkpoint_name) == (None, None)
    for key in (
        "modelspec.date",
        "modelspec.timestep_range",
        "ss_sd_model_name",
        "ss_tag_frequency",
        "ss_min_snr_gamma",
    ):
        assert key not in net.provenance.training


def test_the_same_training_gives_the_same_bytes(tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        torch.manual_seed(0)
        hn.save_hypernetwork(described(captions=CAPTIONS), file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_later_training_replaces_what_the_earlier_one_said():
    net = described(captions=CAPTIONS, date="2026-01-02", model_name="old", model_sha256=SHA256)
    net.provenance.training["ss_session_id"] = "7"
    described(net, steps=20, base_version="sdxl_base_v1-0", model_name="new")
    training = net.provenance.training
    assert training["ss_steps"] == "20"
    assert training["modelspec.architecture"] == "stable-diffusion-xl-v1-base/hypernetwork"
    assert training["ss_session_id"] == "7"
    assert not {"ss_tag_frequency", "modelspec.date", "ss_new_sd_model_hash"} & set(training)
    assert (net.provenance.sd_checkpoint, net.provenance.sd_checkpoint_name) == (None, "new")


def test_without_a_name_of_the_base_model_the_origin_stays():
    net = described(model_name="old", model_sha256=SHA256)
    described(net, model_name=None)
    assert (net.provenance.sd_checkpoint, net.provenance.sd_checkpoint_name) == (SHA256[:10], "old")


@pytest.mark.parametrize("base", ["sana", "pixart-sigma", "sd3m"])
def test_other_base_models_have_their_own_name(base):
    net = described(base_version=base)
    known = {"sd3m": "stable-diffusion-3-m"}
    assert net.provenance.training["modelspec.architecture"] == f"{known.get(base, base)}/hypernetwork"
    assert net.provenance.training["ss_base_model_version"] == base


def test_a_weight_hypernetwork_says_that_it_is_one(tmp_path):
    net = described(hn.WeightHypernetwork("attn2.v", embedding_dim=8, hidden_dim=8, rank=2))
    net.save(tmp_path / "a.safetensors")
    training = hn.WeightHypernetwork.load(tmp_path / "a.safetensors").provenance.training
    assert training["modelspec.architecture"] == "stable-diffusion-v1/weight-hypernetwork"
    assert training["ss_network_module"] == "hnkernels.WeightHypernetwork"


def test_captions_that_are_all_different_do_not_fill_the_file():
    captions = {"set": [f"rare {i}, often" for i in range(5000)]}
    tags = json.loads(described(captions=captions).provenance.training["ss_tag_frequency"])["set"]
    assert len(tags) == 1000
    assert next(iter(tags.items())) == ("often", 5000)


@pytest.mark.parametrize("name", ["a\udc80", "", "x" * 10**4, "\x1b[31m"])
def test_names_of_any_kind_can_be_saved(tmp_path, name):
    net = described(hn.Hypernetwork((8,), name=name), captions={name: [name]}, model_name=name)
    hn.save_hypernetwork(net, tmp_path / "a.safetensors")
    assert hn.load_hypernetwork(tmp_path / "a.safetensors").provenance.name == name
