"""One residual MLP: its layers, keys, options, starts and the multiplier rule."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

import reference
from hnkernels import HypernetworkMLP, MLPConfig
from hnkernels.network.mlp import INITS, derive_dropout_structure, normalise_init
from tests.models import make_mlp, reference_of, relative_error

STRUCTURES = [(1, 1), (1, 2, 1), (1, 0.5, 1), (1, 1.5, 2.25, 1)]


def widths(mlp: HypernetworkMLP) -> list[int]:
    linears = [layer.linear for layer in mlp.layers()]
    return [linears[0].in_features, *(linear.out_features for linear in linears)]


@pytest.mark.parametrize(
    ("dim", "structure", "expected"),
    [
        (768, (1, 0.1, 1), [768, 76, 768]),  # 76.8
        (1024, (1, 0.1, 1), [1024, 102, 1024]),
        (768, (1, 1.1, 1), [768, 844, 768]),
        (8, (1, 1), [8, 8]),
        (4, [1.0, 2.0, 1.0], [4, 8, 4]),
    ],
)
def test_layer_widths_truncate(dim, structure, expected):
    assert widths(HypernetworkMLP(dim, MLPConfig(layer_structure=structure))) == expected


def test_every_sublayer_counts_in_the_state_dict_keys():
    mlp = HypernetworkMLP(8, MLPConfig(activation="relu", layer_norm=True, dropout_structure=(0, 0.1, 0.1)))
    kinds = [type(m) for m in mlp.linear]
    assert kinds == [nn.Linear, nn.ReLU, nn.LayerNorm, nn.Dropout, nn.Linear, nn.LayerNorm, nn.Dropout]
    assert list(mlp.state_dict()) == [f"linear.{i}.{p}" for i in (0, 2, 4, 5) for p in ("weight", "bias")]
    assert mlp.linear[2].eps == 1e-5


@pytest.mark.parametrize("structure", STRUCTURES)
def test_state_dicts_load_strictly_into_the_reference_and_back(structure):
    for activation, norm, dropout, last in itertools.product(
        (None, "relu", "prelu"), (False, True), (False, True), (False, True)
    ):
        p = (0, *(0.1,) * (len(structure) - 1)) if dropout else None
        options = {
            "layer_structure": structure,
            "activation": activation,
            "layer_norm": norm,
            "dropout_structure": p,
            "activate_output": last,
        }
        mlp, ref = HypernetworkMLP(8, MLPConfig(**options)), reference.MLP(8, **options)
        assert list(mlp.state_dict()) == list(ref.state_dict())
        ref.load_state_dict(mlp.state_dict(), strict=True)
        mlp.load_state_dict(ref.state_dict(), strict=True)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("activate_output", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_forward_is_the_references(structure, activate_output, layer_norm):
    mlp = make_mlp(
        layer_structure=structure,
        activation="silu",
        layer_norm=layer_norm,
        activate_output=activate_output,
        dtype=torch.float64,
    ).eval()
    mlp.multiplier = -0.7
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(mlp(x), reference_of(mlp)(x))


def test_the_multiplier_counts_in_eval_mode_only():
    mlp, x = make_mlp(), torch.randn(4, 8)
    mlp.multiplier = 0.0
    assert mlp.multiplier_at(0.5) == 1
    assert not torch.equal(mlp(x), x)
    mlp.eval()
    assert mlp.multiplier_at(0.5) == 0
    assert torch.equal(mlp(x), x)
    mlp.multiplier = 2.0
    torch.testing.assert_close(mlp(x), x + 2 * mlp.linear(x))


def test_dropout_is_active_in_training_only():
    mlp, x = make_mlp(dropout_structure=(0, 0.5, 0.5)), torch.randn(4, 8)
    assert not torch.equal(mlp(x), mlp(x))
    mlp.eval()
    assert torch.equal(mlp(x), mlp(x))


@pytest.mark.parametrize(
    ("layers", "use", "last", "expected"),
    [
        (3, False, False, (0, 0, 0)),
        (3, False, True, (0, 0, 0)),
        (3, True, False, (0, 0, 0)),  # [1, 2, 1] with use_dropout alone has none
        (3, True, True, (0, 0.3, 0)),
        (4, True, False, (0, 0.3, 0, 0)),
        (4, True, True, (0, 0.3, 0.3, 0)),
        (5, True, False, (0, 0.3, 0.3, 0, 0)),
        (5, True, True, (0, 0.3, 0.3, 0.3, 0)),
        (2, True, True, (0, 0)),
    ],
)
def test_the_dropout_list_of_a_file_that_has_none(layers, use, last, expected):
    assert derive_dropout_structure(layers, use, last) == expected


@pytest.mark.parametrize(
    ("init", "first_std", "first_bound"),
    [
        ("normal", 0.01, None),
        ("xavier_uniform", (2 / (64 + 128)) ** 0.5, (6 / (64 + 128)) ** 0.5),
        ("xavier_normal", (2 / (64 + 128)) ** 0.5, None),
        ("kaiming_uniform", (2 / 64) ** 0.5, (6 / 64) ** 0.5),
        ("kaiming_normal", (2 / 64) ** 0.5, None),
        ("identity", (2 / 64) ** 0.5, None),
    ],
)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_inits_draw_what_they_say(init, first_std, first_bound, layer_norm):
    mlp = HypernetworkMLP(64, MLPConfig(init=init, layer_norm=layer_norm))
    weight = mlp.linear[0].weight
    assert weight.shape == (128, 64)
    # 8192 draws: the sample deviation is good to about 1 %, the mean to 1 % of a deviation; five times that is safe.
    assert weight.std().item() == pytest.approx(first_std, rel=0.05)
    assert abs(weight.mean().item()) < 0.06 * first_std
    if first_bound is not None:
        assert weight.abs().max() <= first_bound
    for name, parameter in mlp.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
    if layer_norm:
        hidden = mlp.layers()[0].norm.weight
        assert hidden.std().item() == pytest.approx(0.01, rel=0.4)  # 128 draws: good to 6 %
        assert abs(hidden.mean().item()) < 0.005


def test_hidden_layernorm_weights_are_small_whatever_the_init():
    for init in INITS:
        norm = HypernetworkMLP(256, MLPConfig(init=init, layer_norm=True)).layers()[0].norm
        assert 0.007 < norm.weight.std() < 0.013
        assert not norm.bias.any()


@pytest.mark.parametrize("spelling", ["XavierUniform", "xavier_uniform", "xavieruniform"])
def test_inits_may_be_spelt_as_the_web_ui_does(spelling):
    assert normalise_init(spelling) == "xavier_uniform"


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activate_output", [False, True])
@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 2, 2, 1)])
def test_identity_starts_exactly_at_the_base_and_can_leave_it(layer_norm, activate_output, structure):
    mlp = HypernetworkMLP(
        8,
        MLPConfig(
            init="identity",
            layer_structure=structure,
            activation="tanh",
            layer_norm=layer_norm,
            activate_output=activate_output,
        ),
    )
    x = torch.randn(5, 8)
    y = mlp(x)
    assert torch.equal(y, x)
    (y * torch.randn(5, 8)).sum().backward()
    last = mlp.layers()[-1]
    gradient = (last.norm or last.linear).weight.grad
    # A start that trains: a gradient of the ordinary size, neither none nor 1/sqrt(eps) times too large.
    assert 1e-3 < gradient.norm() < 1e2


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "softplus", "relu6", "hardshrink"])
def test_identity_refuses_an_output_activation_it_cannot_start_at_zero(activation):
    config = MLPConfig(init="identity", activation=activation, activate_output=True)
    with pytest.raises(ValueError, match=f"activation '{activation}'.*activate_output=False or layer_norm=True"):
        HypernetworkMLP(8, config)
    HypernetworkMLP(8, MLPConfig(init="identity", activation=activation, activate_output=True, layer_norm=True))


def test_a_deepcopy_and_a_pickle_are_equal_and_independent():
    mlp = make_mlp(activation="prelu", layer_norm=True, dropout_structure=(0, 0.2, 0)).eval()
    mlp.multiplier = 0.4
    x = torch.randn(3, 8)
    before = mlp(x)
    copies = [copy.deepcopy(mlp), pickle.loads(pickle.dumps(mlp))]
    for other in copies:
        assert torch.equal(other(x), before)
        assert other.config == mlp.config
        nn.init.zeros_(other.linear[0].weight)
    assert torch.equal(mlp(x), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_to_moves_the_parameters_to_another_dtype(dtype):
    mlp = make_mlp(layer_norm=True).eval().to(dtype)
    assert {p.dtype for p in mlp.parameters()} == {dtype}
    x = torch.randn(3, 8, dtype=dtype)
    assert mlp(x).dtype == dtype
    assert relative_error(mlp(x), reference_of(mlp)(x.double())) < 0.02  # a few roundings of bfloat16, 0.4 % each


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_structure": (1,)}, "at least two entries"),
        ({"layer_structure": ()}, "at least two entries"),
        ({"layer_structure": (2, 2, 1)}, "start and end with 1"),
        ({"layer_structure": (1, 2, 2)}, "start and end with 1"),
        ({"layer_structure": (1, 0, 1)}, "positive and finite"),
        ({"layer_structure": (1, -2, 1)}, "positive and finite"),
        ({"layer_structure": (1, float("nan"), 1)}, "positive and finite"),
        ({"layer_structure": (1, float("inf"), 1)}, "positive and finite"),
        ({"layer_structure": "121"}, "sequence of numbers"),
        ({"layer_structure": 3}, "sequence of numbers"),
        ({"layer_structure": None}, "sequence of numbers"),
        ({"layer_structure": (1, "2", 1)}, "numbers only"),
        ({"layer_structure": (1, True, 1)}, "numbers only"),
        ({"dropout_structure": (0, 0.1)}, "2 entries and layer_structure 3"),
        ({"dropout_structure": (0, 1.0, 0)}, r"\[0, 1\)"),
        ({"dropout_structure": (0, -0.1, 0)}, r"\[0, 1\)"),
        ({"dropout_structure": (0, float("nan"), 0)}, r"\[0, 1\)"),
        ({"dropout_structure": 0.3}, "sequence of numbers"),
        ({"init": "zeros"}, "init 'zeros' is unknown; accepted are normal"),
        ({"init": None}, "init None is unknown"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MLPConfig(**options)


@pytest.mark.parametrize("dim", [0, -1, 8.0, "8", True, None])
def test_a_width_must_be_a_positive_whole_number(dim):
    with pytest.raises(ValueError, match="dim must be a positive integer"):
        HypernetworkMLP(dim)


def test_a_layer_without_units_is_refused():
    with pytest.raises(ValueError, match=r"makes a layer of no unit, .* at width 8"):
        HypernetworkMLP(8, MLPConfig(layer_structure=(1, 0.1, 1)))


def test_the_configuration_cannot_be_changed_behind_the_layers_back():
    with pytest.raises(AttributeError):
        MLPConfig().layer_norm = True


def test_printing_shows_width_and_multiplier():
    mlp = HypernetworkMLP(8)
    mlp.multiplier = 0.5
    assert "dim=8, multiplier=0.5" in repr(mlp)
