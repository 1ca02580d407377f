"""The kernels' algebra in eager PyTorch is the reference's mathematics."""

from __future__ import annotations

import pytest
import torch

import reference
from benchmarks import baselines

WIDTH, OUT = 12, 10
NETWORKS = [(a, norm, out) for a in (None, "relu", "silu", "tanh", "gelu") for norm in (False, True) for out in (0, 1)]


def pair(activation: str | None, layer_norm: bool, activate_output: bool = False) -> list[reference.MLP]:
    mlps = [
        reference.MLP(WIDTH, (1, 2, 1), activation, layer_norm, activate_output=activate_output).double() for _ in "kv"
    ]
    for mlp, m in zip(mlps, (0.5, 1.5), strict=True):
        mlp.multiplier = m
    return mlps


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    return x, *torch.randn(2, OUT, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("activation", "layer_norm", "activate_output"), NETWORKS)
def test_values_and_gradients_are_the_references(activation, layer_norm, activate_output, training):
    mlps = [mlp.train(training) for mlp in pair(activation, layer_norm, bool(activate_output))]
    x, w_k, w_v = data()
    x.requires_grad_()
    inputs = [x, *(p for mlp in mlps for p in mlp.parameters())]
    results = []
    for kv in (baselines.hyper_kv(x, *mlps, w_k, w_v), reference.project_kv(x, mlps[:1], mlps[1:], w_k, w_v)):
        results.append((kv, torch.autograd.grad(sum(t.square().sum() for t in kv), inputs)))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
def test_what_is_composed_once_changes_nothing(activation):
    mlps = [mlp.float().eval() for mlp in pair(activation, False)]
    x, w_k, w_v = (t.float() for t in data())
    with torch.no_grad():
        composed = baselines.compose(mlps[0], w_k), baselines.compose(mlps[1], w_v)
        ours = baselines.hyper_kv(x, *mlps, w_k, w_v, composed=composed)
        torch.testing.assert_close(ours, reference.project_kv(x, mlps[:1], mlps[1:], w_k, w_v))


def test_an_affine_network_is_the_projection_alone():
    mlp = pair(None, False)[0].eval()
    assert baselines.compose(mlp, data()[1]).g is None


def test_what_has_another_structure_is_refused():
    x, w_k, w_v = data()
    deep = reference.MLP(WIDTH, (1, 2, 2, 1), "relu").double()
    with pytest.raises(ValueError, match="two linears and no dropout"):
        baselines.hyper_kv(x, deep, deep, w_k, w_v)
    with pytest.raises(ValueError, match="ends in a bare linear"):
        baselines.compose(pair("relu", True)[0], w_k)
