"""The model by hand, its order, its sources, and what is read from compiled code."""

from __future__ import annotations

import pytest

from benchmarks import limits
from benchmarks.counting import accounts
from benchmarks.limits import TILED, chosen, model, read, readings, tile_rows, tile_table
from benchmarks.roofline import (
    GPUS,
    STRICTER,
    Gpu,
    fitting,
    launch_seconds,
    seconds,
    stricter_seconds,
    times,
)
from benchmarks.shapes import AFFINE, PROMPT, RELU, SD15, Layers, Network
from hnkernels.accounting.eager import Account
from hnkernels.triton import cost
from hnkernels.triton.cards import CARDS
from hnkernels.triton.cost import FIRST_LOAD, LATER_LOAD, LAUNCH, Work, seconds_of_processors
from hnkernels.triton.launch import Launch
from hnkernels.triton.target import TARGETS, forced_route
from hnkernels.triton.tiling import Tiles, forced
from tests.marks import compiles_beforehand

ROUND = Gpu("round", "sm_80", 10, 100.0, 10.0, 1.0, None, {})


def launch(flops: int, read: int, written: int) -> Launch:
    return Launch("kernel", 1, None, flops, read, written)


def layer(tokens: int, network: Network = RELU) -> Layers:
    return Layers(320, tokens, (320,), network, text=tokens == PROMPT)


def test_a_launch_takes_its_longer_side_and_its_cost():
    assert seconds(Account((launch(1000, 20, 10),)), ROUND, 1.0) == 10 + 1
    assert seconds(Account((launch(100, 20, 10),)), ROUND, 1.0) == 3 + 1
    assert seconds(Account((launch(1000, 20, 10), launch(100, 20, 10))), ROUND, 0.5) == 10 + 3 + 2 * 0.5
    assert seconds(Account(), ROUND, 1.0) == 0


@pytest.mark.parametrize(
    ("provider", "gpus"),
    [
        ("reference", list(GPUS)),
        ("eager", list(GPUS)),
        ("portable", list(GPUS)),
        *(("triton", [name]) for name in GPUS),
    ],
)
def test_more_tokens_are_never_faster(provider, gpus):
    sizes = [accounts(layer(tokens), provider, GPUS[gpus[0]].target) for tokens in (16, 64, 128, 1025, 4096)]
    for gpu in map(GPUS.get, gpus):
        for mode in ("inference", "forward + backward"):
            # For few tokens our depth may be cut up: another launch, which the roofline sees no use in.
            for predict in (stricter_seconds,) if provider == "triton" else (seconds, stricter_seconds):
                predicted = [predict(found[mode], gpu, gpu.launch_cost) for found in sizes]
                assert predicted == sorted(predicted)


@pytest.mark.parametrize("network", [RELU, Network("silu", True), AFFINE], ids=lambda n: n.name)
@pytest.mark.parametrize("tokens", [77, 256, 4096])
def test_no_prediction_is_below_the_floor(tokens, network):
    rows = model(layer(tokens, network), compiled=False)
    floors = {(row.target, row.mode, row.quantity): row.value for row in rows if row.provider == "bound"}
    assert {row.target for row in rows} == set(GPUS)
    for row in rows:
        assert row.kind == "modelled"
        quantity = "time" if row.quantity == STRICTER else row.quantity
        assert row.value >= floors[row.target, row.mode, quantity]


def test_the_cases_that_are_shown_are_modelled_and_read():
    assert len(chosen()) > 20
    text = "\n".join(times(model(layer(256), compiled=False)))
    for gpu in GPUS:
        assert f"{gpu}: predicted times, modelled, not measured" in text
    bounds = [line for line in text.splitlines() if "| bound |" in line]
    assert len(bounds) == 2 * len(GPUS)
    assert all("| 100% |" in line for line in bounds)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
def test_every_figure_of_a_gpu_has_a_source(gpu):
    for name, figure in vars(gpu).items():
        if isinstance(figure, (int, float)):
            assert figure > 0
            assert gpu.sources[name]
    assert TARGETS[gpu.target].processors == gpu.processors
    card = CARDS[gpu.target]  # what tiles are chosen by
    assert (card.matrix_rate, card.bandwidth) == (gpu.matrix_rate, gpu.bandwidth)
    assert gpu.launch_cost == LAUNCH


@compiles_beforehand
def test_the_reading_of_a_launch_is_what_was_compiled(monkeypatch):
    line = {"registers": "128", "shared_bytes": "49152", "matrix_percent": "30"}
    monkeypatch.setattr(limits, "compiled_lines", lambda: _Everything([line, {**line, "matrix_percent": "20"}]))
    gpu = GPUS["A100"]
    with forced(Tiles(128, 128, 64, 8, 3)):
        first, second = readings(SD15[0], "inference", gpu)
    assert (first.kernel, second.kernel) == ("mlp_layer_forward", "linear_streams")
    # 49 KiB of 164 leave room for three programs, but 128 registers a thread in eight warps for two; the launch has
    # 320 programs on 108 multiprocessors.
    assert first.tiles == "128x128x64 w8 s3"
    assert first.occupancy == 2 * 8 / 64
    assert first.matrix_share == 0.2
    assert first.in_flight == 2 * 2 * (128 + 128) * 64 * 2
    assert first.covered == first.in_flight * 108 / gpu.bandwidth
    with forced(Tiles(16, 64, 64, 4, 4)):
        (few, _) = readings(layer(64), "inference", gpu)
    assert few.programs < 108
    assert few.tiles == "16x64x64 w4 s4"
    assert few.in_flight == 1 * 3 * (16 + 64) * 64 * 2


@compiles_beforehand
def test_a_gradients_tiles_are_those_that_its_steps_load(monkeypatch):
    line = {"registers": "255", "shared_bytes": "98304", "matrix_percent": "30"}
    monkeypatch.setattr(limits, "compiled_lines", lambda: _Everything([line]))
    with forced(Tiles(64, 64, 64, 4, 4)), forced_route("kernels"):
        found = readings(SD15[0], "forward + backward", GPUS["A100"])
    (gradient, _) = [reading for reading in found if reading.kernel == "weight_gradient"]
    assert gradient.tiles == "64x64x64 w4 s4"
    assert gradient.in_flight == 3 * 64 * (64 + 64) * 2


def product(flops: int, programs: int, steps: int, tiles: Tiles, **more) -> Launch:
    return Launch("linear_streams_kernel", programs, tiles, flops, 1, 1, steps, **more)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
def test_the_stricter_model_is_never_below_the_roofline(gpu):
    for network in (RELU, Network("silu", True)):
        for tokens in (77, 1024):
            everyone = {who: accounts(layer(tokens, network), who, gpu.target) for who in ("reference", "triton")}
            for found in everyone.values():
                for account in found.values():
                    assert stricter_seconds(account, gpu, 1e-6) > seconds(account, gpu, 1e-6)


def test_the_stricter_model_of_a_launch_by_hand():
    gpu, tiles = GPUS["A100"], Tiles(128, 128, 64, 8, 3)
    work = Work(108, 10, 128, 128, 64, 8, 3, fitting("sm_80", "linear_streams_kernel", tiles))
    busy = seconds_of_processors(work, TARGETS["sm_80"])
    assert launch_seconds(product(1, 108, 10, tiles), gpu) == pytest.approx(FIRST_LOAD + busy)
    # A kernel without a product waits for one load after the other, in as many waves as there are.
    rows = Launch("layer_output_forward_kernel", 108 * 16 + 1, None, 0, 1, 1, 5)
    assert launch_seconds(rows, gpu) == pytest.approx(FIRST_LOAD + 2 * 5 * LATER_LOAD)
    assert launch_seconds(launch(0, 2039, 0), gpu) == pytest.approx(FIRST_LOAD + 1e-9)


def test_the_vendors_products_take_the_best_of_tiles_and_splits():
    by_tiles = []
    for rows, columns, depth, warps, stages, fit in cost.VENDOR:
        programs = -(-1024 // rows) * -(-1280 // columns)
        work = Work(programs, 2560 // depth, rows, columns, depth, warps, stages, fit)
        by_tiles.append(seconds_of_processors(work, TARGETS["sm_80"]))
    assert cost.vendor_seconds((1, 1024, 1280, 2560), "sm_80") <= min(by_tiles)
    # Few rows and much depth: a split product, whose sum is another launch.
    work = Work(20, 8192 // 64, 64, 64, 64, 4, 4, 4)
    assert cost.vendor_seconds((1, 64, 1280, 8192), "sm_80") < seconds_of_processors(work, TARGETS["sm_80"])


def test_tiles_by_model_are_no_slower_than_by_rule_and_no_faster_than_the_roofline():
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in tile_rows():
        found.setdefault((row.target, row.mode, row.shape), []).append(row.value)
    assert len(found) == len(GPUS) * len(TILED) * 6
    for by_rule, by_model, by_library, by_roofline in found.values():
        assert by_roofline <= by_model <= by_rule
        assert by_roofline < by_library
    assert len(tile_table(tile_rows())) == 4 + len(found)


LEAST = 1.05
"""How many times as fast as the reference the kernels are at least to be, by the stricter model."""

GRID = ((320, 4096, 320), (640, 1024, 640), (1280, 256, 1280), (1280, 64, 1280), (640, 4096, 640), (1280, 1024, 1280),
        (768, 77, 1280), (1024, 77, 1280), (2048, 77, 1280))  # fmt: skip
BATCHES = ((320, 16384, 320), (640, 16384, 640), (1280, 4096, 1280), (1280, 8192, 1280))
"""Of four and of eight pictures: here they are not to be slower."""


@pytest.mark.parametrize(
    "network",
    [*(Network(a, n) for a in ("relu", "silu") for n in (False, True)), Network("gelu"), AFFINE],
    ids=lambda n: n.name,
)
@pytest.mark.parametrize(("width", "tokens", "n"), GRID + BATCHES)
def test_the_kernels_never_lose(network, width, tokens, n):
    shape = Layers(width, tokens, (n,), network, text=tokens == PROMPT)
    reference = accounts(shape, "reference")
    for gpu in GPUS.values():
        ours = accounts(shape, "triton", gpu.target)
        for mode in {"inference", "forward + backward"} & ours.keys():
            theirs, mine = (stricter_seconds(found[mode], gpu, gpu.launch_cost) for found in (reference, ours))
            ratio = theirs / mine
            assert ratio >= (LEAST if (width, tokens, n) in GRID else 1.0), (gpu.name, mode)


@compiles_beforehand
def test_what_has_not_been_compiled_is_said_so_and_never_guessed(monkeypatch):
    monkeypatch.setattr(limits, "compiled_lines", dict)
    rows, lines = read(SD15[0], "inference")
    assert rows == []
    assert len(lines) == 2 * len(GPUS) - 1  # on an H100 it is one launch
    assert all("not compiled" in line for line in lines)


@compiles_beforehand
def test_what_is_read_are_shares_and_bytes_of_launches_on_every_gpu(monkeypatch):
    line = {"registers": "128", "shared_bytes": "49152", "matrix_percent": "30"}
    monkeypatch.setattr(limits, "compiled_lines", lambda: _Everything([line]))
    rows, lines = read(SD15[0], "inference")
    assert {row.target for row in rows} == set(GPUS)
    assert {row.kind for row in rows} == {"compiled"}
    assert not any("not compiled" in line for line in lines)
    for row in rows:
        if row.unit == "1":
            assert 0 < row.value <= 1


class _Everything(dict):
    """The same readings whatever is looked up."""

    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    def get(self, key, default=None):
        return self.lines
