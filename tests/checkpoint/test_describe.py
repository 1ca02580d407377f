"""``describe`` says what is in a file."""

import json

import pytest

from hnkernels import save_hypernetwork
from hnkernels.checkpoint import describe
from tests.checkpoint.a1111_files import flat_dict, pair, write
from tests.checkpoint.nets import make


@pytest.mark.parametrize(("extension", "dtype"), [(".pt", "float32"), (".safetensors", "float16")])
def test_everything_a_file_says_is_there(extension, dtype, tmp_path):
    net = make(dropout_structure=(0, 0.1, 0)).half()
    path = tmp_path / f"f{extension}"
    save_hypernetwork(net, path)
    said = describe(path)
    assert said == {
        "format": extension[1:], "name": "näme", "step": 1234, "sizes": [4, 10], "layer_structure": [1, 2, 1],
        "activation": "relu", "layer_norm": False, "dropout_structure": [0, 0.1, 0], "activate_output": False,
        "init": "normal", "parameters": sum(p.numel() for p in net.parameters()), "dtype": dtype,
        "file_size": path.stat().st_size, "base_model": "v1-5-pruned", "base_model_hash": "81761151",
        "optional_info": "100 pictures", "warnings": [],
    }  # fmt: skip
    json.dumps(said)


def test_what_had_to_be_derived_or_ignored_is_a_warning(tmp_path):
    modules = {4: pair(4, activation="relu", dropout_structure=[0, 0.3, 0])}
    stated = {"activation_func": "relu", "activate_output": False, "use_dropout": True}
    said = describe(write(tmp_path / "f.pt", flat_dict(modules, **stated, weight_initialization="Sparse")))
    dropout, init = said["warnings"]
    assert "dropouts are placed where the positions of the weights show them" in dropout
    assert "'Sparse' is unknown" in init
    assert said["dropout_structure"] == [0, 0.3, 0]


def test_the_oldest_keys_are_a_warning(tmp_path):
    renamed = {
        key.replace("linear.0", "linear1").replace("linear.1", "linear2"): value
        for key, value in pair(4)[0].state_dict().items()
    }
    said = describe(write(tmp_path / "f.pt", {4: (renamed, renamed)}))
    assert said["activation"] == "linear"
    assert "oldest files" in said["warnings"][0]


def test_a_legacy_activation_is_described_with_a_warning(tmp_path):
    save_hypernetwork(make(activation="softmax", allow_legacy_activations=True), tmp_path / "f.pt")
    (warning,) = describe(tmp_path / "f.pt")["warnings"]
    assert "allow_legacy_activations=True" in warning
