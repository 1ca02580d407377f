"""Any network that can be built comes back from a file as it was."""

import warnings
from dataclasses import replace

import torch
from hypothesis import given

from hnkernels import load_hypernetwork, save_hypernetwork
from reference import MLP
from tests.checkpoint.a1111_files import assert_same_function, strict_load
from tests.checkpoint.nets import assert_same_tensors, make, options


def made(drawn):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Xavier and Kaiming without LayerNorm: not used, only stored
        return make(**drawn)


@given(drawn=options())
def test_safetensors_keeps_everything(drawn, tmp_path_factory):
    net = made(drawn)
    path = tmp_path_factory.mktemp("net") / "f.safetensors"
    save_hypernetwork(net, path)
    loaded = load_hypernetwork(path)
    assert_same_tensors(net, loaded)
    assert (loaded.config, loaded.provenance) == (net.config, net.provenance)


@given(drawn=options())
def test_pt_keeps_everything_that_has_a_meaning(drawn, tmp_path_factory):
    net = made(drawn)
    path = tmp_path_factory.mktemp("net") / "f.pt"
    save_hypernetwork(net, path)
    loaded = load_hypernetwork(path)
    assert_same_tensors(net, loaded)
    assert loaded.provenance == net.provenance
    dropouts = net.config.dropout_structure
    assert loaded.config == replace(
        net.config,
        activation=net.config.activation or "linear",
        init="kaiming_normal" if net.config.init == "identity" else net.config.init,
        dropout_structure=dropouts if dropouts and any(dropouts) else None,
    )


@given(drawn=options())
def test_a_pt_file_is_the_same_function_for_the_strict_loader_and_for_ours(drawn, tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "f.pt"
    save_hypernetwork(made(drawn), path)
    pairs, _ = strict_load(path)
    loaded = load_hypernetwork(path)
    for dim in loaded:
        for mlp, expected in zip(loaded[dim], pairs[dim], strict=True):
            assert_same_function(mlp, expected, dim)


@given(drawn=options())
def test_a_file_without_its_dropout_list_gives_the_same_function(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    net = made(drawn)
    save_hypernetwork(net, folder / "f.pt")
    content = torch.load(folder / "f.pt", weights_only=True)
    del content["dropout_structure"]
    content["use_dropout"] = True
    torch.save(content, folder / "g.pt")
    loaded = load_hypernetwork(folder / "g.pt")
    config = net.config
    for dim in loaded:
        for mlp, source in zip(loaded[dim], net[dim], strict=True):
            expected = MLP(
                dim, config.layer_structure, config.activation, config.layer_norm, config.dropout_structure,
                config.activate_output,
            )  # fmt: skip
            expected.load_state_dict(source.state_dict())
            assert_same_function(mlp, expected, dim)
