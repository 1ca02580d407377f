"""However the work is cut up and wherever the rows lie in memory, the results are the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels import hyper_context, hyper_kv
from hnkernels.triton.compiling import xcds
from hnkernels.triton.kernels.lowrank_arguments import LowRank
from hnkernels.triton.kernels.lowrank_linear import lowrank_linear
from hnkernels.triton.kernels.tiles import on_one_xcd, tile_of
from hnkernels.triton.ops.grouped import run_grouped_linear
from hnkernels.triton.ops.linear import run_linear
from hnkernels.triton.tiling import Tiles, forced
from tests.accuracy import Call, check_fp32
from tests.models import FORWARD_TOLERANCE, GRADIENT_TOLERANCE, make_mlp, reference_of, relative_error

SMALL = [Tiles(16, 16, 16, group_m=2), Tiles(32, 16, 64, group_m=1), Tiles(16, 64, 32), Tiles(64, 32, 16)]
SPLIT = [Tiles(16, 16, 16, splits=2), Tiles(32, 64, 16, splits=4), Tiles(32, 32, 32, splits=100)]
NETS = {
    "relu": {"activation": "relu"},
    "silu, norms": {"activation": "silu", "layer_norm": True},
    "prelu, norms, three layers": {
        "activation": "prelu",
        "layer_norm": True,
        "activate_output": True,
        "layer_structure": (1, 1.5, 0.5, 1),
    },
    "one linear": {"layer_structure": (1, 1), "activation": None},
}


@pytest.fixture(params=NETS)
def options(request) -> dict:
    return NETS[request.param]


@pytest.mark.parametrize("tiles", SMALL + SPLIT, ids=str)
def test_many_tiles_give_the_same_values_and_gradients(options, tiles):
    # No dimension is a multiple of a small tile, and the sums over tokens have several parts.
    with forced(tiles):
        check_fp32(lambda: Call.make(dim=19, shape=(37,), n=(21, 35, 18), train=False, strength=0.7, **options))


@pytest.mark.parametrize("tiles", SPLIT, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parts_of_the_depth_are_added_up_the_same_way_every_time(options, dtype, tiles):
    def results() -> list[Tensor]:
        torch.manual_seed(0)
        call = Call.make(dim=40, shape=(21,), n=(35, 35), dtype=dtype, **options)
        with torch.no_grad():
            inference = [t.detach() for t in call.ours()]
        return [*inference, *call.results()]

    with forced(tiles):
        first, second = results(), results()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    whole = results()  # rounded elsewhere, but no further apart than a few roundings
    tolerance = 16 * torch.finfo(dtype).eps
    assert all(relative_error(a, b) <= tolerance for a, b in zip(first, whole, strict=True))


@pytest.mark.parametrize("tiles", [*SMALL[:2], *SPLIT], ids=str)
def test_many_projections_of_one_context_in_small_tiles(tiles):
    x = [torch.randn(45, 37, requires_grad=True) for _ in "kv"]
    w, b = [torch.randn(n, 37) for n in (41, 20, 7)], [torch.randn(n) for n in (41, 20, 7)]
    upstream = [torch.randn(45, n) for n in (41, 20, 7)]
    streams = (0, 1, 1)
    with forced(tiles):
        y = run_grouped_linear((x[0], x[1]), w, b, streams)
        dx = torch.autograd.grad(y, x, upstream)
    exact_x = [t.detach().double().requires_grad_() for t in x]
    exact_y = [
        torch.nn.functional.linear(exact_x[s], p.double(), q.double()) for s, p, q in zip(streams, w, b, strict=True)
    ]
    exact_dx = torch.autograd.grad(exact_y, exact_x, [u.double() for u in upstream])
    assert all(relative_error(a, e) <= FORWARD_TOLERANCE for a, e in zip(y, exact_y, strict=True))
    assert all(relative_error(a, e) <= GRADIENT_TOLERANCE for a, e in zip(dx, exact_dx, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_projections_in_half_precision_and_in_parts(dtype):
    x = [torch.randn(45, 37).to(dtype).requires_grad_() for _ in "kv"]
    w = [torch.randn(n, 37).to(dtype) for n in (48, 32, 16, 64)]
    upstream = [torch.randn(45, t.shape[0]).to(dtype) for t in w]
    results = []
    for tiles in (Tiles(32, 32, 16), Tiles(32, 32, 16, splits=3)):
        with forced(tiles):
            results.append(torch.autograd.grad(run_grouped_linear((x[0], x[1]), w, [], (0, 1, 1, 0)), x, upstream))
    exact = [sum(upstream[i].double() @ w[i].double() for i in of) for of in ((0, 3), (1, 2))]
    for found in results:
        assert all(relative_error(a, e) <= 2 * torch.finfo(dtype).eps for a, e in zip(found, exact, strict=True))


def far_apart(rows: int, width: int) -> Tensor:
    """Random rows more than 2³¹ elements apart, in memory of which next to nothing is ever touched."""
    stride = 2**31 + 8
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        x = torch.empty((rows - 1) * stride + width, dtype=torch.float16).as_strided((rows, width), (stride, 1))
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
    return x.copy_(torch.randn(rows, width))


@pytest.mark.parametrize("grad", [False, True])
def test_rows_may_lie_more_than_2_to_the_31_elements_apart(options, grad):
    mlp = make_mlp(8, dtype=torch.float16, **options).eval()
    x = far_apart(3, 8).requires_grad_(grad)
    near = x.detach().clone().requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        y, expected = hyper_context(x, mlp), hyper_context(near, mlp)
    assert torch.equal(y, expected)
    if grad:
        upstream, parameters = torch.randn(3, 8).half(), list(mlp.parameters())
        own = torch.autograd.grad(y, [x, *parameters], upstream)
        plain = torch.autograd.grad(expected, [near, *parameters], upstream)
        assert all(torch.equal(a, b) for a, b in zip(own, plain, strict=True))


def test_a_projections_rows_may_lie_far_apart():
    x, w = far_apart(3, 8), torch.randn(5, 8).half().requires_grad_()
    (far,), (near,) = run_linear([x], [w]), run_linear([x.clone()], [w])
    assert torch.equal(far, near)
    upstream = torch.randn_like(far)
    assert torch.equal(*(torch.autograd.grad(t, w, upstream)[0] for t in (far, near)))


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "offset", "row of a wider tensor"])
def test_memory_layout_makes_no_difference(options, layout):
    x = {
        "transposed": lambda: torch.randn(8, 6).t(),
        "strided": lambda: torch.randn(12, 16)[::2, ::2],
        "expanded": lambda: torch.randn(1, 8).expand(6, 8),
        "offset": lambda: torch.randn(6 * 8 + 3)[3:].view(6, 8),
        "row of a wider tensor": lambda: torch.randn(6, 20)[:, 4:12],
    }[layout]()
    call = Call.make(dim=8, shape=(6,), n=(6, 7, 5), **options)
    call.context = x.contiguous().requires_grad_()
    plain = call.results()
    call.context = x.requires_grad_()
    for own, contiguous in zip(call.results(), plain, strict=True):
        assert torch.equal(own, contiguous)


def test_upstream_gradients_of_any_layout(options):
    call = Call.make(dim=8, shape=(6,), n=(6, 6), **options)
    for upstream in (torch.ones(1, 1).expand(6, 6), torch.randn(6, 6).t(), torch.randn(6, 12)[:, ::2]):
        call.upstream = (upstream, upstream)
        odd = call.results()
        call.upstream = (upstream.contiguous(), upstream.contiguous())
        assert all(torch.equal(a, b) for a, b in zip(odd, call.results(), strict=True))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_one(options, rows, recompute):
    def make() -> Call:
        return Call.make(dim=8, shape=(rows,), n=(6, 7, 5), recompute=recompute, **options)

    check_fp32(make)
    if rows == 0:
        assert all(t.count_nonzero() == 0 for t in make().results())  # sums of nothing, not what memory held


def test_no_rows_of_many_projections():
    x = [torch.randn(0, 8, requires_grad=True) for _ in "kv"]
    y = run_grouped_linear((x[0], x[1]), [torch.randn(n, 8) for n in (3, 5)], [], (0, 1))
    assert [t.shape for t in y] == [(0, 3), (0, 5)]
    assert [t.shape for t in torch.autograd.grad(y, x, [torch.randn_like(t) for t in y])] == [(0, 8), (0, 8)]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_second_backward_over_a_retained_graph_gives_the_same_bits(options, recompute):
    call = Call.make(dim=20, shape=(37,), n=(6, 7, 5), recompute=recompute, **options)
    outputs = call.ours()
    first = torch.autograd.grad(outputs, call.inputs(), call.upstream, retain_graph=True)
    second = torch.autograd.grad(outputs, call.inputs(), call.upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_two_runs_give_the_same_bits(options):
    call = Call.make(dim=20, shape=(37,), n=(6, 7, 5), **options)
    assert all(torch.equal(a, b) for a, b in zip(call.results(), call.results(), strict=True))


def test_the_two_streams_do_not_meet(options):
    mlps = [make_mlp(8, **options).eval() for _ in "kv"]
    x, w = torch.randn(6, 8), torch.randn(5, 8)
    with torch.no_grad():
        mlps[1].linear[0].weight[0, 0] = float("nan")
        k, v = hyper_kv(x, *mlps, w, w)
    assert v.isnan().any()
    assert relative_error(k, reference_of(mlps[0])(x.double()) @ w.double().T) <= FORWARD_TOLERANCE


@triton.jit
def _count_visits_kernel(visits_ptr, M, N, GROUP_M: tl.constexpr):
    tile_m, tile_n = tile_of(tl.program_id(0), M, N, 1, 1, GROUP_M)
    tl.atomic_add(visits_ptr + tile_m * N + tile_n, 1)


@triton.jit
def _renumber_kernel(out_ptr, programs, XCDS: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(out_ptr + index, on_one_xcd(index, programs, XCDS), mask=index < programs)


@pytest.fixture
def eight_xcds(monkeypatch):
    monkeypatch.setattr("hnkernels.triton.kernels.tiles.xcds", lambda: 8)


@pytest.mark.parametrize(("M", "N"), [(1, 1), (7, 1), (1, 8), (3, 3), (9, 7), (8, 8), (5, 13), (20, 15), (40, 25)])
@pytest.mark.parametrize("group_m", [1, 8])
def test_every_tile_is_visited_once_on_eight_xcds(eight_xcds, M, N, group_m):
    visits = torch.zeros(M, N, dtype=torch.int32)
    _count_visits_kernel[(M * N,)](visits, M, N, group_m)
    assert (visits == 1).all()


@pytest.mark.parametrize("programs", [*range(1, 66), 300, 303, 1000, 1023])
def test_an_xcd_has_neighbouring_tiles(programs):
    numbers = torch.empty(programs, dtype=torch.int32)
    _renumber_kernel[(1,)](numbers, programs, 8, 1024)
    in_turn = torch.cat([numbers[xcd::8] for xcd in range(8)])
    assert torch.equal(in_turn, torch.arange(programs, dtype=torch.int32))


@pytest.mark.parametrize("tiles", [SMALL[0], SPLIT[0]], ids=str)
def test_eight_xcds_give_the_same_bits(options, tiles, request):
    call = Call.make(dim=19, shape=(37,), n=(21, 35, 18), train=False, **options)
    x = torch.randn(3, 21, 37)
    slices = LowRank(x, [torch.randn(3, 4, 37)] * 2, [torch.randn(3, n, 4) for n in (41, 20)], None, None)

    def results() -> list[Tensor]:
        low = lowrank_linear(slices, [torch.ones(n, 37) for n in slices.widths], [None, None])
        return [*call.results(), *low]

    with forced(tiles):
        plain = results()
        request.getfixturevalue("eight_xcds")
        assert all(torch.equal(a, b) for a, b in zip(results(), plain, strict=True))


@pytest.mark.parametrize(("arch", "count"), [("gfx942", 8), ("gfx90a", 1), ("gfx1100", 1), ("sm90", 1)])
def test_only_an_mi300x_has_several_xcds(arch, count):
    builder = SimpleNamespace(options=SimpleNamespace(arch=arch))
    assert xcds(_semantic=SimpleNamespace(builder=builder)) == count
    assert xcds(_builder=builder) == count  # as Triton 3.2 calls it
    assert xcds() == 1  # as the interpreter does
