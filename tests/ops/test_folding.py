"""Affine networks folded into the projection after them."""

import pytest
import torch
import torch.nn.functional as F

import reference
from hnkernels.ops.folding import affine_map, chain_map, fold_projection, is_affine
from tests.models import FORWARD_TOLERANCE, make_mlp, reference_of, relative_error


def folded_and_reference(multipliers, bias, dtype, dim=8, n=6, **options):
    """The output of the folded projection at ``dtype``, and the reference's at float64."""
    mlps = [make_mlp(dim, activation=None, dtype=dtype, **options).eval() for _ in multipliers]
    x, weight = torch.randn(4, 5, dim).to(dtype), torch.randn(n, dim).to(dtype)
    b = torch.randn(n).to(dtype) if bias else None
    refs = [reference_of(mlp) for mlp in mlps]
    for ref, m in zip(refs, multipliers, strict=True):
        ref.multiplier = m
    actual = F.linear(x, *fold_projection(weight, b, tuple(zip(mlps, multipliers, strict=True))))
    return actual, F.linear(reference.chain(x.double(), refs), weight.double(), None if b is None else b.double())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("multipliers", [(1.0,), (0.5,), (-1.5,), (0.0,), (1.0, 0.7), (0.3, 0.0, -2.0), ()])
@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 1.5, 0.5, 1)])
def test_a_folded_chain_is_the_chain(structure, multipliers, bias):
    actual, expected = folded_and_reference(multipliers, bias, torch.float64, layer_structure=structure)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("multipliers", [(1.0,), (-0.5, 1.2)])
def test_in_fp32_it_stays_within_the_forward_tolerance(multipliers):
    actual, expected = folded_and_reference(multipliers, True, torch.float32, dim=64, n=48, std=0.05)
    assert relative_error(actual, expected) <= FORWARD_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_the_weight_is_rounded_once(dtype):
    mlp = make_mlp(16, activation=None).eval()
    weight, bias = torch.randn(8, 16).to(dtype), torch.randn(8).to(dtype)
    exact = fold_projection(weight.double(), bias.double(), ((mlp.double(), 0.7),))
    for actual, e in zip(fold_projection(weight, bias, ((mlp, 0.7),)), exact, strict=True):
        assert torch.equal(actual, e.to(dtype))


def test_nothing_to_fold_returns_the_projection_itself():
    weight = torch.randn(6, 8)
    for chain in ((), ((make_mlp(activation=None), 0.0),)):
        folded, bias = fold_projection(weight, None, chain)
        assert folded is weight
        assert bias is None


def test_no_bias_arises_from_a_network_without_biases():
    mlp = make_mlp(activation=None)
    for layer in mlp.layers():
        torch.nn.init.zeros_(layer.linear.bias)
    assert fold_projection(torch.randn(6, 8), None, ((mlp, 1.0),))[1] is None


def test_the_projection_and_the_network_are_left_alone():
    mlp, weight, bias = make_mlp(activation=None), torch.randn(6, 8), torch.randn(6)
    tensors = [weight, bias, *mlp.parameters()]
    before = [t.detach().clone() for t in tensors]
    folded = fold_projection(weight, bias, ((mlp, 1.0),))
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    assert not any(t.requires_grad for t in folded)


def test_affine_map_is_the_network_without_its_residual():
    mlp = make_mlp(activation="linear", layer_structure=(1, 2, 3, 1), dtype=torch.float64)
    matrix, vector = affine_map(mlp)
    x = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(x @ matrix.T + vector, mlp.linear(x))


def test_chain_map_is_the_chain_without_its_residual():
    mlps = [make_mlp(activation=None, dtype=torch.float64).eval() for _ in range(3)]
    multipliers = (0.7, 0.0, -1.2)
    matrix, vector = chain_map(tuple(zip(mlps, multipliers, strict=True)))
    refs = [reference_of(mlp) for mlp in mlps]
    for ref, m in zip(refs, multipliers, strict=True):
        ref.multiplier = m
    x = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(x + x @ matrix.T + vector, reference.chain(x, refs))


@pytest.mark.parametrize("chain", [(), ((make_mlp(activation=None), 0.0),)])
def test_a_chain_that_does_nothing_has_no_map(chain):
    assert chain_map(chain) is None


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"activation": "relu"}, "activation 'relu'"),
        ({"activation": None, "layer_norm": True}, "layer_norm=True"),
        ({"activation": None, "dropout_structure": (0, 0.1, 0)}, "in training mode"),
    ],
)
def test_a_network_that_is_not_affine_is_refused(options, what):
    mlp = make_mlp(**options)
    assert not is_affine(mlp)
    with pytest.raises(ValueError, match=f"only an affine MLP can be folded.*{what}"):
        fold_projection(torch.randn(6, 8), None, ((mlp, 1.0),))


def test_dropout_does_not_matter_in_eval_mode():
    mlp = make_mlp(activation=None, dropout_structure=(0, 0.5, 0))
    assert not is_affine(mlp)
    assert is_affine(mlp.eval())


def test_an_output_activation_of_a_single_layer_counts():
    assert is_affine(make_mlp(layer_structure=(1, 1), activation="relu"))  # no hidden layer to activate
    assert not is_affine(make_mlp(layer_structure=(1, 1), activation="relu", activate_output=True))


def test_a_fold_made_in_inference_mode_serves_autograd_if_asked_outside_it():
    mlp, weight = make_mlp(activation=None), torch.randn(6, 8)
    with torch.inference_mode():
        inferred = fold_projection(weight, None, ((mlp, 1.0),))
    assert all(torch.equal(a, b) for a, b in zip(inferred, fold_projection(weight, None, ((mlp, 1.0),)), strict=True))
