"""A hidden layer and the projection after it in one launch: its values, and where it is chosen."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from benchmarks.counting import accounts
from benchmarks.roofline import GPUS, launch_seconds
from benchmarks.shapes import SD15
from hnkernels import explain
from hnkernels.triton import cost, mlps
from hnkernels.triton.cost import Chain, Work, seconds_of_chain, seconds_of_processors
from hnkernels.triton.kernels.hidden_and_projection import TILES, choose, columns
from hnkernels.triton.kernels.linear import linear
from hnkernels.triton.launch import Launch, recording
from hnkernels.triton.mlps import Layer, Parameters
from hnkernels.triton.ops.mlp import project
from hnkernels.triton.target import TARGETS, forced_route, planned_for
from hnkernels.triton.tiling import Tiles, forced
from tests.accuracy import ABSOLUTE_FLOOR, RATIO, Call
from tests.models import FORWARD_TOLERANCE, make_mlp, relative_error

pytestmark = pytest.mark.on_device

A100, H100 = TARGETS["sm_80"], TARGETS["sm_90"]
KERNEL = "hidden_and_projection_kernel"
ACTIVATIONS = ["relu", "silu", "gelu"]
SIZES = [
    {"dim": 40, "shape": (77,), "n": (24, 33)},
    {"dim": 33, "shape": (1,), "n": (7, 40, 64)},
    {"dim": 64, "shape": (65,), "n": (64, 64, 64)},
    {"dim": 96, "shape": (2, 5), "n": (320, 1, 96), "bias": False},
    {"dim": 320, "shape": (65,), "n": (320, 320, 320)},
]


@pytest.fixture(params=TILES, ids=str)
def tiles(request) -> Tiles:
    return request.param


def draw(dim: int, **options) -> Call:
    return Call.make(dim=dim, train=False, trained=False, strength=0.7, std=dim**-0.5, **options)


def inferred(call: Call, tiles: Tiles) -> tuple[Tensor, ...]:
    """The results at inference, which take one launch once everything is composed."""
    with forced(tiles), torch.no_grad():
        call.ours()
        with recording() as launches:
            results = call.ours()
    assert [launch.kernel for launch in launches] == [KERNEL]
    return results


def check(call: Call, tiles: Tiles) -> None:
    results = inferred(call, tiles)
    for result, exact in zip(results, call.expected(), strict=False):
        assert relative_error(result, exact) <= FORWARD_TOLERANCE


@pytest.mark.parametrize(
    ("activation", "size"), [*product(ACTIVATIONS, SIZES[:-1]), ("silu", SIZES[-1])], ids=str
)  # fmt: skip
def test_values(activation, size, tiles):
    check(draw(activation=activation, **size), tiles)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("activation", "size"), [*zip(ACTIVATIONS, SIZES[2:], strict=True)], ids=str)
def test_half_precision_is_as_exact_as_eager(activation, size, dtype, tiles):
    call = draw(activation=activation, dtype=dtype, **size)
    results = inferred(call, tiles)
    ratios = [
        (relative_error(ours, exact) + ABSOLUTE_FLOOR) / (relative_error(eager, exact) + ABSOLUTE_FLOOR)
        for ours, eager, exact in zip(results, call.expected(dtype), call.expected(), strict=False)
    ]
    assert torch.tensor(ratios).log().mean().exp() <= RATIO


@pytest.mark.parametrize("missing", ["b_k", "b_v", "b_q"])
def test_a_bias_may_be_missing(missing, tiles):
    check(replace(draw(dim=40, shape=(9,), n=(24, 33, 16)), **{missing: None}), tiles)


def test_rows_need_not_be_contiguous(tiles):
    call = draw(dim=40, shape=(9,), n=(24, 33, 16))
    check(replace(call, context=torch.randn(9, 100)[:, 7:47].requires_grad_()), tiles)


def test_two_contexts_are_two():
    widths = {"k": 24, "v": 33}
    x, w = [torch.randn(70, 40) for _ in widths], [torch.randn(n, 40) for n in widths.values()]
    w1, b1 = [torch.randn(50, 40) for _ in widths], [torch.randn(50) for _ in widths]
    g, c = [torch.randn(n, 50) for n in widths.values()], [torch.randn(n) for n in widths.values()]
    parameters = [Parameters(tuple(w1), tuple(b1), None, None, None)]
    with forced(TILES[0]), recording() as launches:
        results = project(tuple(x), [Layer("relu", False, 0.0)], parameters, tuple(w), tuple(g), tuple(c))
    assert [launch.kernel for launch in launches] == [KERNEL]
    for i, result in enumerate(results):
        x_, w_, w1_, b1_, g_, c_ = (t[i].double() for t in (x, w, w1, b1, g, c))
        exact = x_ @ w_.T + (x_ @ w1_.T + b1_).relu() @ g_.T + c_
        assert relative_error(result, exact) <= FORWARD_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_two_runs_give_the_same_bits(dtype, tiles):
    call = draw(activation="gelu", dtype=dtype, **SIZES[1])
    first, second = inferred(call, tiles), inferred(call, tiles)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_rows_and_no_launch(tiles):
    call = draw(dim=40, shape=(0,), n=(24, 33))
    with forced(tiles), torch.no_grad(), recording() as launches:
        results = call.ours()
    assert launches == []
    assert [t.shape for t in results] == [(0, 24), (0, 33)]


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "prelu"},
        {"activation": "relu", "layer_norm": True},
        {"activation": "relu", "layer_structure": (1, 2, 2, 1)},
    ],
    ids=str,
)
def test_what_it_cannot_do_takes_more_launches(options, tiles):
    call = Call.make(dim=40, shape=(9,), train=False, trained=False, **options)
    with forced(tiles), torch.no_grad(), recording() as launches:
        call.ours()
    assert KERNEL not in [launch.kernel for launch in launches]


def test_it_is_chosen_by_the_model_on_hopper_alone():
    half, widths = torch.float16, (320, 320, 320)
    assert choose(8192, 320, 640, widths, "silu", half, H100) == TILES[0]
    assert choose(4096, 320, 640, widths, "silu", torch.bfloat16, H100) == TILES[1]
    for rows in (0, 1, 77, 1024):  # too few programs
        assert choose(rows, 320, 640, widths, "silu", half, H100) is None
    for name, target in TARGETS.items():
        if name != "sm_90":
            assert choose(8192, 320, 640, widths, "silu", half, target) is None
    assert choose(8192, 320, 640, widths, "silu", torch.float32, H100) is None
    assert choose(8192, 320, 640, (320, 256), "silu", half, H100) is None
    assert choose(8192, 640, 1280, (640, 640), "silu", half, H100) is None
    assert choose(8192, 320, 100, widths, "silu", half, H100) is None
    with forced(Tiles(128, 128, 64, 8, 3)):
        assert choose(8192, 320, 640, widths, "silu", half, H100) is None
    with forced(TILES[1]):
        assert choose(77, 40, 80, (24, 33), "silu", half, H100) == TILES[1]
        assert choose(77, 640, 80, (24, 33), "silu", half, H100) is None
        assert choose(77, 40, 80, (24, 33), "silu", half, A100) is None


@pytest.mark.parametrize("tokens", [4096, 8192])
@pytest.mark.parametrize("query", [False, True])
def test_explain_says_so(tokens, query):
    options = {"tokens": tokens, "out_features": 320, "training": False, "query_features": 320 if query else None}
    nets = [make_mlp(320, activation="silu").eval() for _ in "kv"]
    hopper = explain(*nets, dtype=torch.float16, target="sm_90", **options)
    ampere = explain(*nets, dtype=torch.float16, target="sm_80", **options)
    assert [launch.kernel for launch in hopper.forward] == [KERNEL]
    assert [launch.kernel for launch in ampere.forward] == ["mlp_layer_forward_kernel", "linear_streams_kernel"]
    assert hopper.forward[0].flops == sum(launch.flops for launch in ampere.forward)
    hidden = 2 * tokens * 640 * 2  # bytes of the activations that are neither written nor read again
    saved = sum(launch.bytes_read + launch.bytes_written for launch in ampere.forward)
    saved -= hopper.forward[0].bytes_read + hopper.forward[0].bytes_written
    assert saved >= 2 * hidden


def test_the_account_has_one_launch_on_hopper():
    assert accounts(SD15[0], "triton", "sm_90")["inference"].operations == [KERNEL]
    assert len(accounts(SD15[0], "triton", "sm_80")["inference"].launches) == 2
    training = accounts(SD15[0], "triton", "sm_90")["forward + backward"].operations
    assert KERNEL not in training


def launches_of(tokens: int, act: str, query: bool, route: str) -> tuple[list[Launch], list[Launch]]:
    """What is planned for Hopper, and what it stands for: two launches, or more by the vendor's library."""

    def pair(*shape: int) -> tuple[Tensor, Tensor]:
        first, second = torch.empty(2, *shape, dtype=torch.float16, device="meta")
        return first, second

    x, _ = pair(tokens, 320)
    layers, parameters = [Layer(act, False, 0.0)], [Parameters(pair(640, 320), pair(640), None, None, None)]
    w, g, c = pair(320, 320), pair(320, 640), pair(320)
    along = (w[0], None) if query else None
    with planned_for(H100):
        with recording() as one:
            project((x, x), layers, parameters, w, g, c, query=along)
        with recording() as apart, forced_route(route):
            state, _ = mlps.hidden_layers((x, x), layers, parameters, save=False, query=along)
            linear((x, x), w, c, z=state.stacked, g=g)
    return one, apart


@pytest.mark.parametrize("query", [False, True])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(("tokens", "gain"), [(4096, 1.2), (8192, 1.45), (16384, 1.45)])
def test_one_launch_is_faster_by_the_stricter_model(tokens, gain, act, query):
    gpu = GPUS["H100"]

    def ratio(route: str) -> float:
        one, apart = launches_of(tokens, act, query, route)
        assert len(one) == 1
        assert route == "auto" or len(apart) == 2
        times = [sum(gpu.launch_cost + launch_seconds(t, gpu) for t in each) for each in (one, apart)]
        return times[1] / times[0]

    assert ratio("kernels") >= gain
    assert ratio("auto") >= 1.2


def test_one_program_by_hand():
    # 128 x 32 hidden units, 320 columns before and after: 4,096 FLOP a cycle, of which eight warps reach 8 / (8 + 4).
    cycles = 989.4e12 / 1.83e9 / 132
    multiplying = 2 * 128 * 640 * 32 / cycles * (8 + cycles / 1024) / 8
    between = 128 * 32 * cost.EPILOGUE / 128
    after = seconds_of_processors(Work(1, 10, 128, 320, 32, 8, 3, 1), H100)
    chain = Chain(1, 20, 128, 320, 320, 32, 8, 3)
    by_hand = 20 * (multiplying + between) / 1.83e9 + after
    assert seconds_of_chain(chain, 1, 10, H100) == pytest.approx(by_hand)
    # Programs of the plain product alone come in turns of their own.
    query = seconds_of_chain(chain._replace(programs=132), 132 + 66, 10, H100)
    assert query < 2 * seconds_of_chain(chain._replace(programs=132), 132, 10, H100)


def test_the_tiles_hold_the_narrowest_self_attention():
    assert [columns(tiles) for tiles in TILES] == [320, 320]
