"""Few rows: in a training step a LayerNorm has a launch of its own then, and no weight is read for it."""

from __future__ import annotations

import pytest
import torch

from benchmarks.counting import accounts
from benchmarks.shapes import PROMPT, Layers, Network
from hnkernels.triton import mlps
from hnkernels.triton.mlps import Layer, Parameters
from tests.accuracy import Call, check_fp32, check_half

pytestmark = pytest.mark.on_device

NETS = [
    {"activation": "relu"},
    {"activation": "gelu", "activate_output": True},
    {"activation": "prelu"},
    {"activation": "silu", "layer_structure": (1, 1.5, 0.5, 1)},  # alone, folded, and after the last linear
    {"activation": "relu", "dropout_structure": (0, 0.3, 0)},
]
ROWS = 6  # of 40: fewer than a quarter


def draw(recompute: bool = False, **options) -> Call:
    return Call.make(dim=40, shape=(ROWS,), n=(21, 35, 18), layer_norm=True, recompute=recompute, **options)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("options", NETS[:-1], ids=str)
def test_values_and_all_gradients(options, recompute):
    check_fp32(lambda: draw(recompute, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", NETS[:-1], ids=str)
def test_half_precision(options, dtype):
    check_half(lambda: draw(dtype=dtype, **options), lambda call: call.expected(dtype))


@pytest.mark.parametrize("options", NETS, ids=str)
def test_two_runs_give_the_same_bits(options):
    torch.manual_seed(0)
    first = draw(**options)
    torch.manual_seed(1)
    results = first.results()
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(results, first.results(), strict=True))


def test_the_layers_that_rows_are_too_few_for():
    def parameters(n: int, k: int) -> Parameters:
        w = (torch.empty(n, k, device="meta"),) * 2
        return Parameters(w, w, None, w, w)

    layers = [Layer("relu", True, 0.0), Layer("relu", False, 0.0), Layer("relu", True, 0.0), Layer("linear", True, 0.0)]
    weights = [parameters(60, 40), parameters(30, 60), parameters(40, 30), parameters(400, 40)]
    few = [layer.alone for layer in mlps.trained(layers, weights, 6)]
    assert few == [True, False, True, False]  # after the last one no product follows in any case
    assert [layer.alone for layer in mlps.trained(layers, weights, 50)] == [False, False, True, False]
    assert not any(layer.alone for layer in mlps.trained(layers, weights, 500))
    assert not mlps.waits_for_product(mlps.trained(layers, weights, 6), 0)
    assert mlps.waits_for_product(layers, 0)


@pytest.mark.parametrize(("width", "tokens", "n"), [(768, 77, 1280), (2048, 77, 1280), (1280, 256, 1280)])
def test_no_weight_is_read_for_its_layer_norm(width, tokens, n):
    layer = Layers(width, tokens, (n,), Network("silu"), text=tokens == PROMPT)
    normed, plain = (accounts(layer.of(Network("silu", norm)), "triton") for norm in (True, False))
    step, without = normed["forward + backward"], plain["forward + backward"]
    assert "norm_vectors_kernel" not in step.operations
    assert "normed_gradient_kernel" not in step.operations
    activations = 2 * tokens * 2 * 2 * width  # bytes of those of K and V between the two linears
    assert step.bytes_moved - without.bytes_moved <= 12 * activations
    assert "norm_vectors_kernel" not in normed["inference"].operations  # they are kept
