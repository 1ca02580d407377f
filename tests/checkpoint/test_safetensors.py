"""The safetensors form loses nothing, and is read with the same distrust."""

import json
import struct

import pytest
import safetensors.torch
import torch

from hnkernels import CheckpointError, load_hypernetwork, save_hypernetwork
from tests.checkpoint.a1111_files import tensors_of
from tests.checkpoint.nets import assert_same_tensors, make


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_options_and_origin_come_back_exactly(dtype, tmp_path):
    net = make(
        layer_structure=(1, 0.5, 2.0, 1), activation=None, init="identity", dropout_structure=(0.2, 0, 0.1, 0)
    ).to(dtype)
    save_hypernetwork(net, tmp_path / "f.safetensors")
    loaded = load_hypernetwork(tmp_path / "f.safetensors")
    assert_same_tensors(net, loaded)
    assert loaded.config == net.config
    assert loaded.provenance == net.provenance
    assert not loaded.training


def test_no_memory_is_shared_with_the_file(tmp_path):
    path = tmp_path / "f.safetensors"
    net = make()
    save_hypernetwork(net, path)
    loaded = load_hypernetwork(path)
    for parameter in loaded.parameters():
        assert parameter.requires_grad
        assert parameter.untyped_storage().nbytes() == parameter.numel() * 4
    path.write_bytes(bytes(path.stat().st_size))
    assert_same_tensors(net, loaded)


def test_pt_to_safetensors_to_pt_is_the_same_file(tmp_path):
    first, between, last = tmp_path / "a.pt", tmp_path / "b.safetensors", tmp_path / "c.pt"
    save_hypernetwork(
        make(activation="prelu", layer_norm=True, activate_output=True, dropout_structure=[0, 0.1, 0.2]), first
    )
    save_hypernetwork(load_hypernetwork(first), between)
    save_hypernetwork(load_hypernetwork(between), last)
    old, new = (torch.load(path, weights_only=True) for path in (first, last))
    assert all(torch.equal(tensor, tensors_of(new)[place]) for place, tensor in tensors_of(old).items())
    assert {k: v for k, v in old.items() if type(k) is str} == {k: v for k, v in new.items() if type(k) is str}
    assert first.read_bytes() == last.read_bytes()


def test_the_layout_is_as_documented(tmp_path):
    save_hypernetwork(make(), tmp_path / "f.safetensors")
    with safetensors.safe_open(tmp_path / "f.safetensors", "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert {"4.k.linear.0.weight", "10.v.linear.2.bias"} <= names
    assert metadata["format"] == "pt"
    assert json.loads(metadata["hnkernels"]) == {
        "version": 1,
        "config": {
            "layer_structure": [1, 2, 1], "activation": "relu", "layer_norm": False, "dropout_structure": None,
            "activate_output": False, "init": "normal",
        },
        "provenance": {
            "name": "näme", "step": 1234, "sd_checkpoint": "81761151", "sd_checkpoint_name": "v1-5-pruned",
            "optional_info": "100 pictures",
        },
    }  # fmt: skip


def test_the_softmax_family_needs_the_flag_here_too(tmp_path):
    path = tmp_path / "f.safetensors"
    save_hypernetwork(make(activation="softmin", allow_legacy_activations=True), path)
    with pytest.raises(CheckpointError, match="allow_legacy_activations=True"):
        load_hypernetwork(path)
    assert load_hypernetwork(path, allow_legacy_activations=True).config.activation == "softmin"


def header(**changes):
    """A header entry with changes such as ``config__activation``; ``...`` removes."""

    def apply(tensors, metadata):
        content = json.loads(metadata["hnkernels"])
        for path, new in changes.items():
            section, _, key = path.partition("__")
            target, key = (content[section], key) if key else (content, section)
            target[key] = new
            if new is ...:
                del target[key]
        return tensors, metadata | {"hnkernels": json.dumps(content)}

    return apply


def tensor(name, new):
    def apply(tensors, metadata):
        changed = {k: v for k, v in tensors.items() if k != name}
        return changed if new is None else changed | {name: new}, metadata

    return apply


def raw(text):
    return lambda tensors, metadata: (tensors, {"hnkernels": text})


BAD = {
    "no metadata": (lambda tensors, _: (tensors, None), "without the 'hnkernels' entry"),
    "another program's metadata": (lambda tensors, _: (tensors, {"format": "pt"}), "without the 'hnkernels' entry"),
    "broken JSON": (raw('{"version": 1,'), "not valid JSON"),
    "JSON nested without end": (raw("[" * 100_000), "not valid JSON"),
    "a number with five thousand digits": (raw("9" * 5000), "JSON|without version"),
    "JSON of another kind": (raw("[1]"), "without version"),
    "no version": (header(version=...), "without version"),
    "a version that is a bool": (header(version="1"), "without version"),
    "a later version": (header(version=2), "update hnkernels"),
    "no config": (header(config=...), "without version, config"),
    "config of another kind": (header(config=[1]), "without version, config"),
    "no provenance": (header(provenance=...), "without version, config"),
    "no layer_structure": (header(config__layer_structure=...), "at least two entries"),
    "layer_structure a string": (header(config__layer_structure="121"), "layer_structure"),
    "layer_structure with infinity": (header(config__layer_structure=[1, float("inf"), 1]), "positive and finite"),
    "layer_structure enormous": (header(config__layer_structure=[1, 1e308, 1]), "does not follow"),
    "layer_norm a number": (header(config__layer_norm=1), "layer_norm = 1"),
    "layer_norm without weights": (header(config__layer_norm=True), "is missing"),
    "unknown activation": (header(config__activation="snake"), "unknown"),
    "no activation, but its place": (header(config__activation=None), "is missing"),
    "dropout too short": (header(config__dropout_structure=[0.1]), "entries"),
    "a dropout that is not there": (header(config__dropout_structure=[0, 0.1, 0]), "is missing"),
    "unknown init": (header(config__init="zeros"), "init"),
    "step a string": (header(provenance__step="1"), "step"),
    "name a list": (header(provenance__name=["n"]), "name"),
    "no tensors": (lambda _, metadata: ({}, metadata), "no weights for any context width"),
    "a foreign tensor": (tensor("unet.weight", torch.zeros(3)), "foreign tensor 'unet.weight'"),
    "a foreign stream": (tensor("4.q.linear.0.weight", torch.zeros(8, 4)), "foreign tensor"),
    "a foreign key": (tensor("4.k.linear.x.weight", torch.zeros(8, 4)), "foreign key"),
    "a missing bias": (tensor("4.k.linear.0.bias", None), "neither a Linear"),
    "K without V": (tensor("20.k.linear.0.weight", torch.zeros(40, 20)), "width 20, V: is missing"),
    "a wrong shape": (tensor("4.k.linear.0.weight", torch.zeros(8, 5)), "does not follow from width 4"),
    "integers": (tensor("4.k.linear.0.bias", torch.zeros(8, dtype=torch.int32)), "floating-point"),
    "float8": (tensor("4.k.linear.0.bias", torch.zeros(8).to(torch.float8_e5m2)), "floating-point"),
    "mixed dtypes": (tensor("4.k.linear.0.bias", torch.zeros(8).half()), "mixes dtypes"),
    "NaN": (tensor("4.v.linear.0.bias", torch.full((8,), float("nan"))), "V: linear.0.bias holds NaN"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_refused(name, tmp_path):
    spoil, match = BAD[name]
    path = tmp_path / "f.safetensors"
    save_hypernetwork(make(), path)
    with safetensors.safe_open(path, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key).clone() for key in file.keys()}, file.metadata()  # noqa: SIM118
    tensors, metadata = spoil(tensors, metadata)
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_hypernetwork(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "f.safetensors"
    save_hypernetwork(make(), path)
    data = path.read_bytes()
    for length in (1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="damaged, cut short"):
            load_hypernetwork(path)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}" + b"trailing",
        struct.pack("<Q", 4) + b"\xff\xfe{}",
        struct.pack("<Q", 72) + b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}' + bytes(8),
        b"PK\x03\x04 a zip by another name",
    ],
)
def test_headers_that_lie_are_refused(content, tmp_path):
    path = tmp_path / "f.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_hypernetwork(path)
