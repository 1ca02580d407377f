"""Products by the vendor's library: the same values and gradients, counted alike, where the model says so."""

from __future__ import annotations

import pytest
import torch

from hnkernels import Hypernetwork, explain, hyper_kv
from hnkernels.triton import vendor
from hnkernels.triton.kernels.weight_gradient import WeightGradients
from hnkernels.triton.launch import recording
from hnkernels.triton.ops.linear import linear
from hnkernels.triton.route import ROUTES, norm_alone, route
from hnkernels.triton.target import TARGETS, asked_route, forced_route
from hnkernels.triton.tiling import by_model
from tests.accuracy import check_fp32, check_half
from tests.triton.cases import CASES, Case
from tests.triton.test_dropout import NETS, name_of
from tests.triton.test_dropout import test_forward_and_gradients_are_the_references_with_that_mask as check_dropout

pytestmark = pytest.mark.on_device


@pytest.fixture
def by_vendor():
    with forced_route("vendor"):
        yield


@pytest.mark.usefixtures("by_vendor")
@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_values_and_all_gradients(case: Case):
    if case.dtype == torch.float32:
        check_fp32(case.draw)
    else:
        check_half(case.draw, lambda call: call.expected(case.dtype))


@pytest.mark.usefixtures("by_vendor")
@pytest.mark.parametrize("options", NETS, ids=name_of)
def test_dropout_draws_the_same_mask(options):
    check_dropout(options, False)


def networks(width: int = 16, **options) -> tuple:
    return Hypernetwork((width,), **options)[width]


def step(mlps, x, w, dtype=None):
    """K and V and all gradients."""
    parameters = [p for mlp in mlps for p in mlp.parameters()]
    with torch.autocast(torch.get_default_device().type, dtype, enabled=dtype is not None):
        results = hyper_kv(x, *mlps, *w, backend="triton")
    given = [torch.ones_like(t) for t in results]
    return [*results, *torch.autograd.grad(results, [x, *parameters], given)]


def test_under_autocast_the_residual_stays_wide():
    mlps = networks(activation="silu", layer_norm=True)
    x, w = torch.randn(2, 9, 16, requires_grad=True), [torch.randn(12, 16) for _ in "kv"]
    ours = step(mlps, x, w, torch.bfloat16)
    with forced_route("vendor"):
        theirs = step(mlps, x, w, torch.bfloat16)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a.float(), b.float(), atol=0.05 * a.abs().max().item())


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one(rows):
    mlps = networks(activation="gelu", layer_norm=True)
    x, w = torch.randn(1, rows, 16, requires_grad=True), [torch.randn(12, 16) for _ in "kv"]
    with forced_route("vendor"):
        theirs = step(mlps, x, w)
    for a, b in zip(step(mlps, x, w), theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_columns_that_are_not_contiguous_and_a_bias_on_one_stream():
    x, w = torch.randn(7, 40)[:, :20], [torch.randn(9, 20) for _ in "kv"]
    b = [torch.randn(9), torch.zeros(9)]
    with forced_route("vendor"), recording() as launches:
        k, v = linear([x], w, b, False)
    assert [launch.kernel for launch in launches] == ["vendor_product"] * 2
    assert torch.allclose(k, x @ w[0].t() + b[0], atol=1e-5)
    assert torch.allclose(v, x @ w[1].t(), atol=1e-5)


@pytest.mark.parametrize("options", [{"activation": "silu"}, {"activation": "relu", "layer_norm": True}], ids=str)
def test_two_runs_give_the_same_bits(options):
    mlps = networks(**options)
    x, w = torch.randn(2, 9, 16, requires_grad=True), [torch.randn(12, 16) for _ in "kv"]
    with forced_route("vendor"):
        assert all(torch.equal(a, b) for a, b in zip(step(mlps, x, w), step(mlps, x, w), strict=True))


def test_gradients_that_are_to_be_differentiated_again_are_refused_as_elsewhere():
    mlps = networks(activation="silu")
    x, w = torch.randn(1, 5, 16, requires_grad=True), [torch.randn(12, 16) for _ in "kv"]
    with forced_route("vendor"):
        k, _ = hyper_kv(x, *mlps, *w, backend="triton")
        (dx,) = torch.autograd.grad(k.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives"):
            dx.sum().backward()


def test_scaled_sums_and_products():
    da, h = torch.randn(6, 5), torch.randn(6, 4)
    with forced_route("vendor"):
        gradients = WeightGradients([[(5, 4)]], 6, da.dtype, da.device)
        assert gradients.add(0, (da,), (h,), (0.5,)) is None
        flat = gradients.total()
    assert torch.allclose(flat[:20].view(5, 4), 0.5 * da.t() @ h, atol=1e-6)
    assert torch.allclose(flat[20:], 0.5 * da.sum(0), atol=1e-6)


def kernels(width: int, tokens: int, target: str, training: bool = True, **options) -> list[str]:
    told = explain(*networks(width, **options), tokens=tokens, target=target, training=training)
    return [launch.kernel for launch in told.launches]


def test_the_model_takes_the_library_where_it_is_faster():
    # As many rows as a batch of pictures has on Hopper, for which the library multiplies faster than Triton.
    large = kernels(1280, 4096, "sm_90", activation="silu")
    assert large.count("vendor_product") >= 8
    assert "weight_gradient_kernel" not in large
    # There are few rows, so that launches count, or the kernels lose nothing.
    for width, tokens, target in ((1280, 64, "sm_90"), (640, 1024, "sm_90"), (640, 4096, "sm_80"), (320, 512, "sm_89")):
        for training in (False, True):
            assert not any(name.startswith(vendor.PREFIX) for name in kernels(width, tokens, target, training))


def test_a_layer_norm_stands_alone_where_the_library_multiplies():
    assert norm_alone(8192, 2560, 1280, 1280, torch.float16, TARGETS["sm_90"])
    assert not norm_alone(1024, 1280, 640, 640, torch.float16, TARGETS["sm_80"])
    assert not norm_alone(8192, 2560, 1280, 1280, torch.float32, TARGETS["sm_90"])
    large = kernels(1280, 8192, "sm_90", activation="silu", layer_norm=True)
    assert "layer_output_forward_kernel" in large
    assert "norm_vectors_kernel" not in large


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("tokens", [77, 4096])
def test_every_target_has_a_way(target, training, tokens):
    # Also where no tiles are proven for some kind of kernel: then a rule of thumb has some.
    for options in ({"activation": "silu"}, {"activation": "gelu", "layer_norm": True}):
        assert kernels(640, tokens, target, training, **options)


@pytest.mark.parametrize("options", [{"activation": "silu"}, {"activation": "relu", "layer_norm": True}], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_both_routes_count_the_same_products(options, training):
    counts = []
    for way in ("kernels", "vendor"):
        with forced_route(way):
            told = explain(*networks(64, **options), tokens=48, training=training, query_features=64)
        # Those of two vectors aside, which a folded LayerNorm takes, and the vendor's way has no use for.
        counts.append(sum(t.flops for t in told.launches if "norm_vectors" not in t.kernel))
    assert counts[0] == counts[1]


def test_explain_says_which_and_why():
    text = str(explain(*networks(1280, activation="silu"), tokens=4096, target="sm_90"))
    assert "vendor_product" in text
    assert "µs, library" in text
    with forced_route("kernels"):
        text = str(explain(*networks(1280, activation="silu"), tokens=4096, target="sm_90"))
    assert "vendor_product" not in text
    assert "HNKERNELS_ROUTE=kernels" in text


def test_full_precision_and_unknown_cards_have_no_choice():
    tiles = by_model("linear", 4096, 1280, 1280, TARGETS["sm_90"])
    shape = (4096, 1280, 1280)
    assert not route("linear", *shape, torch.float32, TARGETS["sm_90"], tiles, [shape] * 2).vendor
    assert route("linear", *shape, torch.float16, TARGETS["sm_90"], tiles, [shape] * 2).vendor


def test_an_unknown_route_is_refused_with_those_that_are_known():
    with forced_route("cublas"), pytest.raises(ValueError, match="'cublas' is unknown; accepted are auto, kernels, v"):
        kernels(16, 8, "sm_90")
    assert asked_route() in ROUTES
