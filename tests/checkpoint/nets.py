"""Networks to save, and comparison of what came back."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from hnkernels import Hypernetwork
from hnkernels.network.activations import ACTIVATIONS
from hnkernels.network.mlp import INITS

NAMES = [None, "linear", *(name for name, row in ACTIVATIONS.items() if not row.legacy)]


def make(**options: Any) -> Hypernetwork:
    """A small network whose biases and LayerNorms are random too, and which says where it comes from."""
    net = Hypernetwork(**({"sizes": (4, 10)} | options))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    origin = net.provenance
    origin.name, origin.step, origin.sd_checkpoint = "näme", 1234, "81761151"
    origin.sd_checkpoint_name, origin.optional_info = "v1-5-pruned", "100 pictures"
    return net


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of ``Hypernetwork``: structures, activations, dropouts of all kinds, but small."""
    inner = draw(st.lists(st.sampled_from([0.5, 1, 1.3, 2, 2.25]), max_size=3))
    structure = (1, *inner, 1)
    rates = st.sampled_from([0.0, 0.0, 0.05, 0.3])
    activate_output = draw(st.booleans())
    return {
        "sizes": draw(st.sampled_from([(4,), (10, 4), (8, 20, 4)])),
        "layer_structure": structure,
        "activation": draw(st.sampled_from(NAMES)),
        "layer_norm": draw(st.booleans()),
        "dropout_structure": draw(st.none() | st.tuples(*[rates] * len(structure))),
        "activate_output": activate_output,
        # With an active output, "identity" exists only for some activations.
        "init": draw(st.sampled_from([init for init in INITS if init != "identity" or not activate_output])),
    }


def assert_same_tensors(a: Hypernetwork, b: Hypernetwork) -> None:
    """Bit for bit, dtype included."""
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert tensor.dtype == second[key].dtype
        assert torch.equal(tensor, second[key]), key
