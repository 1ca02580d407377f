"""Weight gradients, and those of a LayerNorm in front, however many parts the sum over tokens has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hnkernels.triton.kernels import weight_gradient
from hnkernels.triton.kernels.sums import sum_rows
from hnkernels.triton.kernels.weight_gradient import NormInFront, WeightGradients, neighbours
from hnkernels.triton.launch import recording
from hnkernels.triton.target import TARGETS
from hnkernels.triton.tiling import Tiles, forced, splits
from tests.accuracy import Call, check_fp32, check_half
from tests.models import GRADIENT_TOLERANCE, relative_error

pytestmark = pytest.mark.on_device

TILES = [None, Tiles(16, 16, 16, group_m=2), Tiles(16, 64, 32), Tiles(32, 16, 64, group_m=1)]
NETS = {
    "output serves": {"activation": "relu"},
    "smooth": {"activation": "silu"},
    "activated output": {"activation": "gelu", "activate_output": True},
    "three linears": {"activation": "relu", "layer_structure": (1, 1.5, 0.5, 1)},
}


@pytest.fixture(params=[1, 2, 3])
def parts(request, monkeypatch) -> int:
    """In how many parts the tokens are summed."""
    monkeypatch.setattr(weight_gradient, "splits", lambda *_: request.param)
    return request.param


def draw(*size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64)


@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize("streams", [1, 2])
def test_those_after_a_layer_norm(parts, tiles, streams):
    m, n, k = 75, 37, 83
    da, h, w = ([draw(*size) for _ in range(streams)] for size in ((m, n), (m, k), (n, k)))
    gamma, beta = ([draw(k) for _ in range(streams)] for _ in range(2))
    plain = [[draw(*size) for _ in range(streams)] for size in ((m, 5), (m, 11))]
    shapes = [[(5, 11)] * streams, [(n, k)] * streams, [(5, 11)] * streams]
    with forced(tiles) if tiles else forced(Tiles(32, 64, 64)), recording() as launches:
        gradients = WeightGradients(shapes, m, torch.float64, torch.get_default_device(), normed=[1])
        for index in (2, 0):
            assert gradients.add(index, tuple(plain[0]), tuple(plain[1]), (1.0, 0.5)) is None
        vectors = gradients.add(1, tuple(da), tuple(h), norm=NormInFront(tuple(w), tuple(gamma), tuple(beta)))
        assert vectors is not None
        out = torch.empty(vectors.shape[1], dtype=torch.float64)
        flat = gradients.total((vectors, out))
    kernels = [launch.kernel for launch in launches]
    assert kernels.count("sum_rows_kernel") == 1
    assert kernels.count("normed_weight_gradient_kernel") == (parts > 1)
    for s, found in enumerate(out.view(streams, 2, k)):
        u, db = da[s].T @ h[s], da[s].sum(0)
        starts = gradients.offsets[1]
        expected = u * gamma[s] + torch.outer(db, beta[s])
        torch.testing.assert_close(flat[starts[s] : starts[s] + n * k].view(n, k), expected)
        torch.testing.assert_close(flat[starts[streams + s] :][:n], db)
        torch.testing.assert_close(found[0], (w[s] * u).sum(0))
        torch.testing.assert_close(found[1], db @ w[s])
        for index in (0, 2):
            starts, factor = gradients.offsets[index], (1.0, 0.5)[s]
            product = factor * plain[0][s].T @ plain[1][s]
            torch.testing.assert_close(flat[starts[s] : starts[s] + 55].view(5, 11), product)
            torch.testing.assert_close(flat[starts[streams + s] :][:5], factor * plain[0][s].sum(0))


@pytest.mark.parametrize("tiles", TILES[:2], ids=str)
@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_whole_networks_with_layer_norms(parts, tiles, options):
    with forced(tiles) if tiles else forced(Tiles(32, 64, 64)):
        check_fp32(lambda: Call.make(dim=20, shape=(75,), n=(21, 35), layer_norm=True, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_after_a_layer_norm(parts, dtype):
    def make() -> Call:
        return Call.make(dim=36, shape=(75,), n=(21, 35), dtype=dtype, activation="relu", layer_norm=True, std=1 / 6)

    check_half(make, lambda call: call.expected(dtype))


def test_the_same_bits_every_time(parts):
    call = Call.make(dim=20, shape=(75,), n=(6, 7), activation="silu", layer_norm=True)
    assert all(torch.equal(a, b) for a, b in zip(call.results(), call.results(), strict=True))


@pytest.mark.parametrize("count", range(5))
def test_sums_side_by_side(count):
    wide = torch.randn(70, 60)
    sums = [(wide[: 7 * i + 1, 3 * i : 40 + i], torch.empty(40 - 2 * i)) for i in range(count)]
    with recording() as launches:
        sum_rows(*sums, (wide[:0], empty := torch.ones(60)))
    assert len(launches) == -(-count // 3)
    assert not empty.any()
    for parts, out in sums:
        assert relative_error(out, parts.double().sum(0)) <= GRADIENT_TOLERANCE


def test_ranges_that_touch_are_one():
    assert neighbours([(0, 2), (2, 5), (6, 7), (7, 7), (8, 9)]) == [(0, 5), (6, 7), (8, 9)]


def test_splits_fill_the_processors_and_hide_latency_where_copies_are_cheap():
    target = TARGETS["sm_90"]
    assert splits(8192, 100, 64, target) == 1  # a second one would wait for a processor
    assert splits(8192, 100, 64, target, resident=3) == 1
    assert splits(8192, 100, 64, target, resident=3, affordable=2) == 2
    assert splits(65536, 100, 64, target, resident=3, affordable=9) == 3
    assert splits(8192, 30, 64, target, resident=1, affordable=0) == 4  # one on every processor is worth its copies
    assert splits(1024, 30, 64, target, resident=3, affordable=9) == 2  # eight steps each
