"""The activation table: every name of an A1111 file, and nothing else."""

import pytest
import torch
from torch import nn

from hnkernels import HypernetworkMLP, MLPConfig
from hnkernels.network.activations import ACTIVATIONS, resolve
from reference.mlp import activation_module
from tests.models import make_mlp, reference_of

USABLE = [
    "celu",
    "elu",
    "gelu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leakyrelu",
    "logsigmoid",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "rrelu",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softshrink",
    "softsign",
    "swish",
    "tanh",
    "tanhshrink",
]
LEGACY = ["logsoftmax", "softmax", "softmax2d", "softmin"]
SAMPLES = torch.cat([torch.linspace(-8, 8, 161), torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0])])


def test_the_table_holds_the_names_of_the_format():
    assert set(ACTIVATIONS) == {*USABLE, *LEGACY}


@pytest.mark.parametrize("name", [None, "linear"])
def test_linear_means_no_activation(name):
    assert resolve(name) is None


@pytest.mark.parametrize("name", USABLE)
def test_a_name_builds_what_the_reference_builds(name):
    built, expected = resolve(name).build().eval(), activation_module(name).eval()
    assert type(built) is type(expected)
    assert torch.equal(built(SAMPLES), expected(SAMPLES))


def test_swish_is_hardswish_and_silu_is_the_real_swish():
    x = torch.tensor([-4.0, -1.0, 1.0, 4.0])
    assert torch.equal(resolve("swish").build()(x), nn.functional.hardswish(x))
    torch.testing.assert_close(resolve("silu").build()(x), x * torch.sigmoid(x))


def test_gelu_is_the_exact_one_and_leakyrelu_has_slope_a_hundredth():
    x = torch.tensor([-2.0, 0.7])
    torch.testing.assert_close(resolve("gelu").build()(x), x * 0.5 * (1 + torch.erf(x / 2**0.5)))
    torch.testing.assert_close(resolve("leakyrelu").build()(x), torch.tensor([-0.02, 0.7]))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("glu", "halves the width"),
        ("multiheadattention", "cannot be built"),
        ("threshold", "cannot be built"),
        ("swoosh", "is unknown"),
        ("ReLU", "is unknown"),
        ("", "is unknown"),
    ],
)
def test_other_names_are_refused_with_the_reason_and_what_is_accepted(name, reason):
    with pytest.raises(ValueError, match=f"{name!r}.*{reason}.*accepted are linear, .*relu.*tanhshrink"):
        MLPConfig(activation=name)


def test_a_module_in_place_of_a_name_is_refused():
    with pytest.raises(ValueError, match="must be a name or None, not ReLU"):
        resolve(nn.ReLU())


@pytest.mark.parametrize("name", LEGACY)
def test_the_softmax_family_needs_its_flag(name):
    with pytest.raises(ValueError, match="allow_legacy_activations=True"):
        MLPConfig(activation=name)
    assert MLPConfig(activation=name, allow_legacy_activations=True).activation == name


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")  # torch says so of the reference: that is the point
@pytest.mark.parametrize("name", LEGACY)
def test_the_softmax_family_mixes_the_batch_as_the_reference_does(name):
    mlp = make_mlp(activation=name, allow_legacy_activations=True, dtype=torch.float64)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(mlp(x), reference_of(mlp)(x))
    assert not torch.allclose(mlp(x)[:1], mlp(x[:1]))


@pytest.mark.parametrize("name", [n for n in USABLE if ACTIVATIONS[n].inplace])
def test_the_inplace_form_gives_the_same_bits_and_overwrites(name):
    row, x = ACTIVATIONS[name], SAMPLES.clone()
    result = row.inplace(x)
    assert result.data_ptr() == x.data_ptr()
    assert torch.equal(result, row.build()(SAMPLES))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [n for n in USABLE if ACTIVATIONS[n].inplace_in_training])
def test_the_inplace_form_allowed_in_training_gives_the_same_gradient(name, dtype):
    row, upstream = ACTIVATIONS[name], torch.randn(SAMPLES.shape).to(dtype)
    gradients = []
    for form in (row.inplace, row.build()):
        x = SAMPLES.to(dtype, copy=True).requires_grad_()
        form(x * 1).backward(upstream)  # an intermediate: a leaf cannot be overwritten
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_prelu_has_one_scalar_and_trains_it():
    mlp = HypernetworkMLP(8, MLPConfig(activation="prelu"))
    slope = dict(mlp.named_parameters())["linear.1.weight"]
    assert slope.shape == (1,)
    assert slope.item() == 0.25
    optimizer = torch.optim.SGD(mlp.parameters(), lr=1.0)
    mlp(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    assert slope.item() != 0.25


def test_rrelu_is_random_in_training_only():
    mlp, x = make_mlp(activation="rrelu"), -torch.rand(16, 8)
    assert not torch.equal(mlp(x), mlp(x))
    mlp.eval()
    assert torch.equal(mlp(x), mlp(x))
