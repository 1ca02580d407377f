"""A home with a few small networks in it."""

from __future__ import annotations

import pytest

import hnkernels as hn
from hnkernels.home.library import Library

WIDTHS = (48, 80, 96)  # of the embedded model


@pytest.fixture
def library(home):
    return Library(home)


@pytest.fixture
def add(home):
    """Writes a context network among the home's, or to a folder; returns its key."""

    def write(name="style", extension=".safetensors", folder=None, step=0, base=None, **options):
        net = hn.Hypernetwork(**{"sizes": (8,), "activation": "linear", "name": name} | options)
        net.provenance.step, net.provenance.sd_checkpoint_name = step, base
        folder = folder or home.networks
        folder.mkdir(exist_ok=True)
        hn.save_hypernetwork(net, folder / f"{name}{extension}")
        return f"{folder.relative_to(home.path).as_posix()}/{name}"

    return write


@pytest.fixture
def add_weights(home):
    """Writes a weight hypernetwork of two styles among the home's networks; returns its key."""

    def write(name="styles"):
        net = hn.WeightHypernetwork(
            ("attn2",), embedding_dim=8, hidden_dim=8, rank=2, projections=("k",), styles=("ink", "oil"), name=name
        )
        net.save(home.networks / f"{name}.safetensors")
        return f"networks/{name}"

    return write


def contents(folder):
    """Every file below a folder with its bytes, but for what the library remembers."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".library.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
