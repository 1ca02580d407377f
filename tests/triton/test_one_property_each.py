"""One property of a network each, at the smallest size that has it: seconds, and the name says what is wrong.

``test_values.py`` has the pairs of all of them.
"""

import pytest
import torch

from hnkernels import hyper_kv
from tests.accuracy import Call, check_fp32
from tests.models import FORWARD_TOLERANCE, GRADIENT_TOLERANCE, reference_of, relative_error

pytestmark = pytest.mark.on_device

SMALL = {"dim": 12, "shape": (5,), "n": (6, 7)}
PROPERTIES = {
    "multipliers of K and V": {"train": False},
    "a strength": {"train": False, "strength": -0.5},
    "a strength for each of a chain": {"train": False, "length": 2, "strength": (0.5, 1.5)},
    "training mode, without a multiplier": {"train": True},
    "a network of one layer": {"layer_structure": (1, 1)},
    "layers that grow and shrink": {"layer_structure": (1, 2, 0.5, 1)},
    "the output is activated": {"activate_output": True},
    "no activation": {"activation": None},
    "projections without biases": {"bias": False},
    "frozen projections": {"trained": False},
    "recomputation": {"recompute": True},
    "a query that rides along": {"n": (6, 7, 9)},
    "one row": {"shape": (1,)},
    "a row more than a tile": {"shape": (17,)},
    "a context of three dimensions": {"shape": (2, 3)},
    "an odd width": {"dim": 7},
}


@pytest.mark.parametrize("norm", [False, True], ids=["", "with LayerNorm"])
@pytest.mark.parametrize("name", PROPERTIES)
def test_values_and_gradients(name, norm):
    check_fp32(lambda: Call.make(**{"activation": "silu", "layer_norm": norm, **SMALL, **PROPERTIES[name]}))


@pytest.mark.parametrize("norm", [False, True], ids=["", "with LayerNorm"])
@pytest.mark.parametrize("tensor", [False, True], ids=["numbers", "tensors"])
def test_strengths_of_k_and_v_apart(tensor, norm):
    call = Call.make(activation="silu", layer_norm=norm, train=False, **SMALL)
    numbers = {"k": 0.5, "v": -2.0}
    strength = {stream: torch.tensor(m) if tensor else m for stream, m in numbers.items()}
    chains = (call.mlps_k, call.mlps_v)
    with torch.no_grad():
        ours = hyper_kv(call.context, *chains, call.w_k, call.w_v, call.b_k, call.b_v, strength=strength)
        for mlps, m in zip(chains, numbers.values(), strict=True):
            mlps[0].multiplier *= m
        for actual, expected in zip(ours, by_hand(call, *(reference_of(mlps[0]) for mlps in chains)), strict=True):
            assert relative_error(actual, expected) <= FORWARD_TOLERANCE


@pytest.mark.parametrize("norm", [False, True], ids=["", "with LayerNorm"])
def test_one_network_for_k_and_v(norm):
    call = Call.make(activation="silu", layer_norm=norm, **SMALL)
    mlp = call.mlps_k[0]
    ref = reference_of(mlp)
    ours = hyper_kv(call.context, mlp, mlp, call.w_k, call.w_v, call.b_k, call.b_v)
    exact = by_hand(call, ref, ref)
    for actual, expected in zip(ours, exact, strict=True):
        assert relative_error(actual, expected) <= FORWARD_TOLERANCE
    upstream = [u.double() for u in call.upstream]
    gradients = torch.autograd.grad(ours, list(mlp.parameters()), call.upstream)
    for actual, expected in zip(gradients, torch.autograd.grad(exact, list(ref.parameters()), upstream), strict=True):
        assert relative_error(actual, expected) <= GRADIENT_TOLERANCE


def by_hand(call, ref_k, ref_v):
    """K and V in float64."""
    x = call.context.double()
    sides = ((ref_k, call.w_k, call.b_k), (ref_v, call.w_v, call.b_v))
    return [torch.nn.functional.linear(ref(x), w.double(), b.double()) for ref, w, b in sides]
