"""``explain``: the launches of an operation, and the budgets that they have to keep, counted without a GPU."""

from __future__ import annotations

import pytest
import torch

import reference
from hnkernels import Explanation, Hypernetwork, explain
from hnkernels.accounting.eager import Counting, saved_bytes
from hnkernels.triton._compat import QUERY_COMES_ALONG
from hnkernels.triton.target import forced_route

WIDTH, TOKENS = 320, 8192  # the first block of Stable Diffusion 1.x at 512 px, batch 2


def explained(activation: str | None = "relu", layer_norm: bool = False, **options) -> Explanation:
    net_options = {
        k: options.pop(k) for k in ("layer_structure", "activate_output", "dropout_structure") if k in options
    }
    net = Hypernetwork((WIDTH,), activation=activation, layer_norm=layer_norm, **net_options)
    return explain(*net[WIDTH], tokens=TOKENS, out_features=WIDTH, **options)


def eager_modules(activation: str | None, layer_norm: bool) -> tuple[reference.MLP, reference.MLP, torch.Tensor]:
    """The A1111-style modules and their input, without data."""
    with torch.device("meta"):
        mlps = [reference.MLP(WIDTH, (1, 2, 1), activation, layer_norm).half() for _ in range(2)]
        return mlps[0], mlps[1], torch.empty(TOKENS, WIDTH, dtype=torch.float16, requires_grad=True)


@pytest.mark.parametrize(
    ("activation", "layer_norm", "inference", "forward", "backward"),
    [("relu", False, 2, 3, 6), ("silu", False, 2, 3, 6), ("gelu", False, 2, 3, 6), ("mish", False, 2, 3, 6),
     ("relu", True, 4, 5, 9), ("silu", True, 4, 5, 9), ("gelu", True, 4, 5, 9), ("prelu", True, 4, 5, 9)],
)  # fmt: skip
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_launches_keep_to_the_budget(activation, layer_norm, inference, forward, backward, target):
    with forced_route("kernels"):
        assert len(explained(activation, layer_norm, training=False, target=target).forward) <= inference
        training = explained(activation, layer_norm, target=target)
    assert len(training.forward) <= forward
    assert len(training.backward) <= backward


def test_an_affine_network_costs_the_projections_alone_at_inference():
    launches = explained(None, training=False).forward
    assert [launch.kernel for launch in launches] == ["vendor_linear"] * 2


def test_self_attention_with_a_network_takes_no_more_launches_than_the_bare_projections():
    of_its_own = 0 if QUERY_COMES_ALONG else 1
    assert len(explained(training=False, query_features=WIDTH).forward) == 2 + of_its_own
    assert len(explained(query_features=WIDTH).forward) == 3 + of_its_own


@pytest.mark.parametrize(
    ("activation", "layer_norm", "bound"),
    [("relu", False, 1.0), ("silu", False, 0.56), ("gelu", False, 0.56), ("mish", False, 0.56), ("relu", True, 0.65),
     ("silu", True, 0.48)],
)  # fmt: skip
def test_no_more_is_saved_for_backward_than_the_budget_allows(activation, layer_norm, bound):
    mlp_k, mlp_v, x = eager_modules(activation, layer_norm)
    eager = saved_bytes(lambda: (mlp_k(x), mlp_v(x)), [*mlp_k.parameters(), *mlp_v.parameters()])
    assert explained(activation, layer_norm).saved_bytes <= bound * eager


@pytest.mark.parametrize("layer_norm", [False, True])
def test_recomputation_saves_the_input_alone(layer_norm):
    assert explained("silu", layer_norm, recompute=True).saved_bytes == TOKENS * WIDTH * 2


def test_a_training_step_moves_little_more_than_half_of_eagers_bytes_and_less_with_layer_norm():
    ratios = []
    for layer_norm in (False, True):
        mlp_k, mlp_v, x = eager_modules("relu", layer_norm)
        w_k, w_v = torch.empty(2, WIDTH, WIDTH, device="meta", dtype=torch.float16)
        with Counting() as counting:
            kv = reference.project_kv(x, [mlp_k], [mlp_v], w_k, w_v)
            torch.autograd.backward(kv, [torch.empty_like(t) for t in kv])
        ratios.append(explained("relu", layer_norm).bytes_moved / counting.account.bytes_moved)
    assert ratios[0] <= 0.55
    assert ratios[1] < ratios[0]


def test_the_floating_point_operations_are_those_of_the_products():
    product = 2 * TOKENS * WIDTH * WIDTH  # of one [M, d] × [d, d]
    training = explained(input_gradient=False)
    # Forward 2 + 2 + 1 of them per stream, backward the projection's 1, the hidden gradient's 2, two weights' 2 each.
    assert training.flops == 2 * (5 + 1 + 2 + 2 + 2) * product
    assert explained().flops == training.flops + 2 * 2 * product  # and the context's


@pytest.mark.parametrize("training", [True, False])
def test_the_table_names_what_it_counts_and_says_that_nothing_was_measured(training):
    text = str(explained("silu", True, training=training, target="sm_90"))
    assert "mlp_layer_forward" in text
    assert ("weight_gradient" in text) == training
    assert "counted for sm_90, not measured" in text


def test_frozen_things_take_no_launches():
    kernels = [launch.kernel for launch in explained(input_gradient=False).backward]
    assert "input_gradient_kernel" not in kernels
    weights = kernels.count("weight_gradient_kernel")
    trained = [launch.kernel for launch in explained(train_projections=True).backward]
    assert trained.count("weight_gradient_kernel") == weights + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "sm_75"}, "target 'sm_75' is unknown; accepted are sm_80, "),
        ({"tokens": 0}, "tokens must be a positive integer, not 0"),
        ({"out_features": 1.5}, "out_features must be a positive integer, not 1.5"),
        ({"dtype": torch.float64}, "computes in float16, bfloat16 and float32, not torch.float64"),
        ({"query_features": -1}, "query_features must be a positive integer, not -1"),
    ],
)
def test_what_cannot_be_explained_is_refused(changes, message):
    net = Hypernetwork((8,))
    with pytest.raises(ValueError, match=message):
        explain(*net[8], **changes)


def test_what_the_kernels_cannot_do_is_refused():
    net = Hypernetwork((8,), activation="rrelu")
    with pytest.raises(ValueError, match="activation 'rrelu' has no device code"):
        explain(*net[8])
    with pytest.raises(ValueError, match="an MLP"):
        explain([], [])
    with pytest.raises(ValueError, match="must be HypernetworkMLPs or sequences of them, not NoneType"):
        explain(None, None)
    with pytest.raises(ValueError, match=r"one width, not \[8, 16\]"):
        explain(Hypernetwork((8,))[8][0], Hypernetwork((16,))[16][1])


def test_it_is_the_same_where_nothing_is_recorded():
    with torch.inference_mode():
        assert explained("silu") == explained("silu")
        assert explained("silu").backward
