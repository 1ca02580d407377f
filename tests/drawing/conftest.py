"""Networks of both kinds for the embedded model, and one artist for all tests, so that the model is loaded once."""

import pytest
import torch

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.convert.survey import model_without_weights


@pytest.fixture(scope="package")
def artist():
    from hnkernels.drawing.artist import Artist

    return Artist("cpu")


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="package")
def ink(folder):
    """A network that changes a lot."""
    torch.manual_seed(0)
    net = hn.Hypernetwork((48, 80, 96), activation="relu", name="ink")
    for width in net:
        for mlp in net[width]:
            torch.nn.init.normal_(mlp.linear[2].weight, std=0.3)
    hn.save_hypernetwork(net, folder / "ink.safetensors")
    return folder / "ink.safetensors"


@pytest.fixture(scope="package")
def styles(folder):
    """A weight hypernetwork with three styles."""
    torch.manual_seed(0)
    gen = hn.WeightHypernetwork(
        "attn2", embedding_dim=96, hidden_dim=8, styles=("oil", "chalk", "pen"), model=model_without_weights(TINY_SD)
    )
    for parameter in gen.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    gen.save(folder / "styles.safetensors")
    return folder / "styles.safetensors"


@pytest.fixture
def asks(ink):
    """A request of two steps with a network."""
    from hnkernels.drawing.request import DrawRequest, NetworkUse

    return DrawRequest(TINY_SD, "digit seven", networks=(NetworkUse(ink, "ink"),), seed=3, steps=2, guidance=3.0)
