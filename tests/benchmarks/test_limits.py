"""The model by hand, its order, its sources, and what is read from compiled code."""

from __future__ import annotations

import pytest

from benchmarks.accounting.cases import Network, Projections
from benchmarks.limits import choices, static, stricter
from benchmarks.limits.gpus import GPUS, Gpu, gpu_named
from benchmarks.limits.roofline import seconds
from benchmarks.limits.tables import chosen, model, read, times
from hnkernels.accounting.eager import Account
from hnkernels.triton import cost
from hnkernels.triton.cards import CARDS
from hnkernels.triton.cost import FIRST_LOAD, LATER_LOAD, LAUNCH, Work, seconds_of_processors
from hnkernels.triton.launch import Launch
from hnkernels.triton.target import TARGETS
from hnkernels.triton.tiling import Tiles
from tests.marks import compiles_beforehand

RELU = Network("relu")
ROUND = Gpu("round", "sm_80", 10, 100.0, 10.0, 1.0, None, {})


def launch(flops: int, read: int, written: int) -> Launch:
    return Launch("kernel", 1, None, flops, read, written)


def case(tokens: int, network: Network = RELU) -> Projections:
    return Projections(f"projection, {network.name}", f"320 x {tokens}", network, 320, tokens, (320,))


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
    sizes = [case(tokens).accounts(provider, GPUS[gpus[0]].target) for tokens in (16, 64, 128, 1025, 4096)]
    for gpu in map(gpu_named, gpus):
        for mode in ("inference", "forward + backward"):
            # For few tokens our depth may be cut up: another launch, which the roofline sees no use in.
            for predict in (stricter.seconds,) if provider == "triton" else (seconds, stricter.seconds):
                predicted = [predict(accounts[mode], gpu, gpu.launch_cost) for accounts in sizes]
                assert predicted == sorted(predicted)


@pytest.mark.parametrize("network", [Network("relu"), Network("silu", True), Network(None)], ids=lambda n: n.name)
@pytest.mark.parametrize("tokens", [77, 256, 4096])
def test_no_prediction_is_below_the_floor(tokens, network):
    rows = model(case(tokens, network=network), compiled=False)
    floors = {(row.target, row.mode, row.quantity): row.value for row in rows if row.provider == "bound"}
    assert {row.target for row in rows} == set(GPUS)
    for row in rows:
        assert row.kind == "modelled"
        quantity = "time" if row.quantity == stricter.QUANTITY else row.quantity
        assert row.value >= floors[row.target, row.mode, quantity]


def test_the_cases_that_are_shown_are_modelled_and_read():
    assert len(chosen()) > 20
    text = "\n".join(times(model(case(256), compiled=False)))
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


def test_an_unknown_gpu_is_refused_with_those_that_are_known():
    assert gpu_named("A100") is GPUS["A100"]
    with pytest.raises(ValueError, match="GPU 'V100' is unknown; accepted are A100, H100, RTX 4090, MI300X"):
        gpu_named("V100")


@compiles_beforehand
def test_the_reading_of_a_launch_is_what_was_compiled(monkeypatch):
    line = {"registers": "128", "shared_bytes": "49152", "matrix_percent": "30"}
    monkeypatch.setattr(static, "_compiled", lambda: _Everything([line, {**line, "matrix_percent": "20"}]))
    gpu = GPUS["A100"]
    first, second = static.readings(case(4096), "inference", gpu)
    assert (first.kernel, second.kernel) == ("mlp_layer_forward", "linear_streams")
    # 49 KiB of 164 leave room for three programs, but 128 registers a thread in eight warps for two; the launch has
    # 320 programs on 108 multiprocessors.
    assert first.tiles == "128x128x64 w8 s3"
    assert first.occupancy == 2 * 8 / 64
    assert first.matrix_share == 0.2
    assert first.in_flight == 2 * 2 * (128 + 128) * 64 * 2
    assert first.covered == first.in_flight * 108 / gpu.bandwidth
    (few, _) = static.readings(case(64), "inference", gpu)
    assert few.programs < 108
    assert few.tiles == "16x64x64 w4 s4"
    assert few.in_flight == 1 * 3 * (16 + 64) * 64 * 2


@compiles_beforehand
def test_a_gradients_tiles_are_those_that_its_steps_load(monkeypatch):
    line = {"registers": "255", "shared_bytes": "98304", "matrix_percent": "30"}
    monkeypatch.setattr(static, "_compiled", lambda: _Everything([line]))
    found = static.readings(case(4096), "forward + backward", GPUS["A100"])
    (gradient, _) = [reading for reading in found if reading.kernel == "weight_gradient"]
    assert gradient.tiles == "64x64x64 w4 s4"
    assert gradient.in_flight == 3 * 64 * (64 + 64) * 2


def product(flops: int, programs: int, steps: int, tiles: Tiles, **more) -> Launch:
    return Launch("linear_streams_kernel", programs, tiles, flops, 1, 1, steps, **more)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
def test_the_stricter_model_is_never_below_the_roofline(gpu):
    for network in (RELU, Network("silu", True)):
        for tokens in (77, 1024):
            everyone = {who: case(tokens, network).accounts(who, gpu.target) for who in ("reference", "triton")}
            for accounts in everyone.values():
                for account in accounts.values():
                    assert stricter.seconds(account, gpu, 1e-6) > seconds(account, gpu, 1e-6)


def test_the_stricter_model_of_a_launch_by_hand():
    gpu, tiles = GPUS["A100"], Tiles(128, 128, 64, 8, 3)
    work = Work(108, 10, 128, 128, 64, 8, 3, stricter.fitting("sm_80", "linear_streams_kernel", tiles))
    busy = seconds_of_processors(work, TARGETS["sm_80"])
    assert stricter.launch_seconds(product(1, 108, 10, tiles), gpu) == pytest.approx(FIRST_LOAD + busy)
    # A kernel without a product waits for one load after the other, in as many waves as there are.
    rows = Launch("layer_output_forward_kernel", 108 * 16 + 1, None, 0, 1, 1, 5)
    assert stricter.launch_seconds(rows, gpu) == pytest.approx(FIRST_LOAD + 2 * 5 * LATER_LOAD)
    assert stricter.launch_seconds(launch(0, 2039, 0), gpu) == pytest.approx(FIRST_LOAD + 1e-9)


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
    for row in choices.rows():
        found.setdefault((row.target, row.mode, row.shape), []).append(row.value)
    assert len(found) == len(GPUS) * len(choices.SHAPES) * 6
    for by_rule, by_model, by_library, by_roofline in found.values():
        assert by_roofline <= by_model <= by_rule
        assert by_roofline < by_library
    assert len(choices.table(choices.rows())) == 4 + len(found)


LEAST = 1.05
"""How many times as fast as the reference the kernels are at least to be, by the stricter model."""

GRID = ((320, 4096, 320), (640, 1024, 640), (1280, 256, 1280), (1280, 64, 1280), (640, 4096, 640), (1280, 1024, 1280),
        (768, 77, 1280), (1024, 77, 1280), (2048, 77, 1280))  # fmt: skip
BATCHES = ((320, 16384, 320), (640, 16384, 640), (1280, 4096, 1280), (1280, 8192, 1280))
"""Of four and of eight pictures: here they are not to be slower."""


@pytest.mark.parametrize(
    "network",
    [*(Network(a, n) for a in ("relu", "silu") for n in (False, True)), Network("gelu"), Network(None)],
    ids=lambda n: n.name,
)
@pytest.mark.parametrize(("width", "tokens", "n"), GRID + BATCHES)
def test_the_kernels_never_lose(network, width, tokens, n):
    shape = Projections("projection", "any", network, width, tokens, (n,))
    reference = shape.accounts("reference")
    for gpu in GPUS.values():
        ours = shape.accounts("triton", gpu.target)
        for mode in {"inference", "forward + backward"} & ours.keys():
            ratio = stricter.seconds(reference[mode], gpu, gpu.launch_cost) / stricter.seconds(
                ours[mode], gpu, gpu.launch_cost
            )
            assert ratio >= (LEAST if (width, tokens, n) in GRID else 1.0), (gpu.name, mode)


@compiles_beforehand
def test_what_has_not_been_compiled_is_said_so_and_never_guessed(monkeypatch):
    monkeypatch.setattr(static, "_compiled", dict)
    rows, lines = read(case(4096), "inference")
    assert rows == []
    assert len(lines) == 2 * len(GPUS) - 1  # on an H100 it is one launch
    assert all("not compiled" in line for line in lines)


@compiles_beforehand
def test_the_committed_readings_serve_a_layer_without_layer_norm():
    rows, lines = read(case(4096), "inference")
    assert {row.target for row in rows} == set(GPUS)
    assert {row.kind for row in rows} == {"compiled"}
    assert not any("not compiled" in line for line in lines)
    for row in rows:
        if row.unit == "1":
            assert 0 < row.value <= 1
    assert all(gpu.target in CARDS for gpu in GPUS.values())


class _Everything(dict):
    """The same readings whatever is looked up."""

    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    def get(self, key, default=None):
        return self.lines
