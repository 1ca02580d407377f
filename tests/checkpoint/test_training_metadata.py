"""What safetensors files say of training: kept, shown, never trusted, and absent where there was none."""

import hashlib
import json
import subprocess
import sys

import pytest
import safetensors
import safetensors.torch
import torch

from hnkernels import CheckpointError, WeightHypernetwork, load_hypernetwork, save_hypernetwork
from hnkernels.checkpoint import describe
from hnkernels.checkpoint.training_metadata import HASH
from hnkernels.generator.summary import describe as describe_weights
from tests.checkpoint.nets import assert_same_tensors, make

TRAINING = {
    "modelspec.architecture": "stable-diffusion-v1/hypernetwork",
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.title": "näme",
    "ss_steps": "1234",
    "ss_tag_frequency": '{"10_cat": {"cat": 3}}',
}


def metadata_of(path):
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


def trained():
    net = make()
    net.provenance.training = dict(TRAINING)
    return net


def rewrite(path, **changes):
    """The file with other metadata, as another program would write it."""
    with safetensors.safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = {**file.metadata(), **changes}
    safetensors.torch.save_file(tensors, path, metadata)


def test_it_stands_beside_what_is_ours_and_comes_back(tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_hypernetwork(trained(), first)
    metadata = metadata_of(first)
    assert {key: metadata[key] for key in TRAINING} == TRAINING
    assert set(metadata) == {*TRAINING, HASH, "format", "hnkernels"}
    assert "training" not in json.loads(metadata["hnkernels"])["provenance"]
    loaded = load_hypernetwork(first)
    assert loaded.provenance.training == TRAINING
    assert loaded.provenance == trained().provenance
    save_hypernetwork(loaded, second)
    assert first.read_bytes() == second.read_bytes()


def test_a_file_without_training_is_as_it_was(tmp_path):
    path = tmp_path / "a.safetensors"
    save_hypernetwork(make(), path)
    assert set(metadata_of(path)) == {"format", "hnkernels"}
    assert "training" not in describe(path)
    assert set(json.loads(metadata_of(path)["hnkernels"])["provenance"]) == {
        *("name", "step", "sd_checkpoint", "sd_checkpoint_name", "optional_info"),
    }


def test_the_same_network_gives_the_same_bytes_in_every_process(tmp_path):
    torch.manual_seed(0)
    save_hypernetwork(trained(), tmp_path / "a.safetensors")
    code = (
        "import sys, hnkernels as hn; "
        "hn.save_hypernetwork(hn.load_hypernetwork(sys.argv[1] + '/a.safetensors'), sys.argv[1] + '/b.safetensors')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_hash_is_of_the_tensors_and_follows_them(tmp_path):
    path, net = tmp_path / "a.safetensors", trained()
    for _ in range(2):
        save_hypernetwork(net, path)
        data = path.read_bytes()
        tensors = data[8 + int.from_bytes(data[:8], "little") :]
        assert metadata_of(path)[HASH] == "0x" + hashlib.sha256(tensors).hexdigest()
        net = load_hypernetwork(path)
        with torch.no_grad():
            next(net.parameters()).add_(1)


def test_entries_of_other_programs_are_kept(tmp_path):
    path = tmp_path / "a.safetensors"
    save_hypernetwork(make(), path)
    rewrite(path, **{"ss_session_id": "7", "modelspec.thumbnail": "data:…", "other": "x", HASH: "0xlie"})
    loaded = load_hypernetwork(path)
    assert loaded.provenance.training == {"ss_session_id": "7", "modelspec.thumbnail": "data:…"}
    save_hypernetwork(loaded, path)
    assert set(metadata_of(path)) == {"format", "hnkernels", "ss_session_id", "modelspec.thumbnail"}


def test_networks_do_not_share_it(tmp_path):
    net = trained()
    save_hypernetwork(net, tmp_path / "a.safetensors")
    loaded = load_hypernetwork(tmp_path / "a.safetensors")
    loaded.provenance.training["ss_steps"] = "0"
    assert net.provenance.training == TRAINING
    assert make().provenance.training == {}


def test_a_pt_file_has_no_place_for_it(tmp_path):
    save_hypernetwork(trained(), tmp_path / "a.pt")
    save_hypernetwork(make(), tmp_path / "b.pt")
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "b.pt"))
    assert a.keys() == b.keys()
    assert load_hypernetwork(tmp_path / "a.pt").provenance.training == {}


HOSTILE = {
    "ss_tag_frequency": "[" * 10**6,
    "ss_steps": "9" * 10**5,
    "ss_": "",
    "modelspec.": "\x1b[31m\0[/bold]",
    "ss_\x1b]0;x\x07[red]": "'; import os",
    "modelspec.thumbnail": "data:text/html,<script>",
}


def test_hostile_values_are_texts_like_any_other(tmp_path):
    path = tmp_path / "a.safetensors"
    net = make()
    save_hypernetwork(net, path)
    rewrite(path, **HOSTILE)
    loaded = load_hypernetwork(path)
    assert loaded.provenance.training == HOSTILE
    assert_same_tensors(loaded, net)
    save_hypernetwork(loaded, path)
    assert describe(path)["training"] == HOSTILE


def test_more_than_can_be_saved_is_left_out_with_a_note(tmp_path):
    path = tmp_path / "a.safetensors"
    save_hypernetwork(make(), path)
    rewrite(path, ss_tag_frequency="x" * (2**24 + 1), ss_steps="9")
    assert load_hypernetwork(path).provenance.training == {}
    said = describe(path)
    assert "training" not in said
    assert "bytes of metadata about training were left out; 16777216 are accepted" in said["warnings"][0]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (None, r"cannot hold provenance\.training = None; give a dict of texts"),
        ([("ss_steps", "1")], "a list; give a dict"),
        ({"ss_steps": 1}, r"provenance\.training\['ss_steps'\] = 1; give a text"),
        ({"ss_steps": None}, "give a text"),
        ({1: "x"}, "the entry 1"),
        ({"steps": "1"}, r"the entry 'steps' .*begin with modelspec\. or ss_"),
        ({"hnkernels": "{}"}, "the entry 'hnkernels'"),
        ({"format": "np"}, "the entry 'format'"),
        ({HASH: "0x0"}, "is written by itself"),
        ({"ss_output_name": "a\udc80"}, "give a text"),
        ({"ss_\udc80": "a"}, "give a text"),
        ({"ss_tag_frequency": "x" * (2**24)}, "cannot hold 16777232 bytes.*shorten it"),
    ],
)
@pytest.mark.parametrize("kind", ["context", "weight"])
def test_what_a_file_cannot_hold_is_refused(tmp_path, training, message, kind):
    net = make() if kind == "context" else weight_hypernetwork()
    net.provenance.training = training
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match=message):
        save_hypernetwork(net, path) if kind == "context" else net.save(path)
    assert not path.exists()


def weight_hypernetwork():
    return WeightHypernetwork("attn2.v", embedding_dim=8, hidden_dim=8, rank=2, name="wash")


def test_weight_hypernetworks_have_it_too(tmp_path):
    first, second, plain = (tmp_path / f"{name}.safetensors" for name in "abc")
    net = weight_hypernetwork()
    net.save(plain)
    assert set(metadata_of(plain)) == {"format", "hnkernels"}
    assert "training" not in describe_weights(plain)
    net.provenance.training = dict(TRAINING)
    net.save(first)
    assert TRAINING.items() <= metadata_of(first).items()
    assert json.loads(metadata_of(first)["hnkernels"]) == json.loads(metadata_of(plain)["hnkernels"])
    loaded = WeightHypernetwork.load(first)
    assert loaded.provenance.training == TRAINING
    loaded.save(second)
    assert first.read_bytes() == second.read_bytes()
    assert describe_weights(first)["training"] == TRAINING
