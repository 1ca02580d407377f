"""Tiles by measurement: opt-in, kept on disk, and never in the way."""

from __future__ import annotations

import json

import pytest
import torch

from hnkernels.triton import autotune, route, tiling
from hnkernels.triton.autotune import Measured
from hnkernels.triton.kernels import linear, weight_gradient  # noqa: F401  # say how their products are measured
from hnkernels.triton.target import TARGETS, asked_route, target_of
from hnkernels.triton.tiling import Tiles

SHAPE = ("forward", 20, 16, 16, torch.float32)
KIND = ("linear", *SHAPE[1:])
TIMED = (Tiles(32, 32, 32), Tiles(16, 16, 16), Tiles(16, 32, 16))
HERE = target_of(torch.device("cpu"))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HNKERNELS_CACHE", str(tmp_path))
    monkeypatch.setattr(autotune, "_known", {})
    monkeypatch.setattr(tiling, "candidates", lambda product, target: TIMED)


class Timer:
    """Runs what it times, and says that the tiles in force take as long as they have rows and columns."""

    def __init__(self, faults: tuple[Tiles, ...] = ()):
        self.faults = faults
        self.timed: list[Tiles] = []

    def __call__(self, run):
        assert tiling.forced_tiles() is not None  # else a run would ask for tiles, and measure again
        run()
        if asked_route() == "vendor":
            return 500
        tiles = autotune.choose(*KIND, HERE)  # the forced ones
        if tiles in self.faults:
            raise RuntimeError("out of resource: shared memory")
        self.timed.append(tiles)
        return tiles.block_m * tiles.block_n


@pytest.mark.parametrize("kind", tiling.PRODUCTS)
def test_the_fastest_candidate_is_kept_on_disk(kind):
    timer = Timer()
    best = autotune.tune(kind, *SHAPE[1:], HERE, timer)
    assert best == (Tiles(16, 16, 16), 256, 500)
    assert timer.timed == list(TIMED)
    (row,) = json.loads(autotune.cache_file().read_text()).values()
    assert (Tiles(**row["tiles"]), row["kernel"], row["library"]) == best
    autotune._known.clear()  # as in another process
    assert list(autotune._load().values()) == [best]


def test_a_candidate_that_does_not_run_is_passed_over():
    assert autotune.tune(*SHAPE, HERE, Timer(faults=(Tiles(16, 16, 16),))).tiles == Tiles(16, 32, 16)
    with pytest.raises(RuntimeError, match=r"no tiling runs forward 20x16x16 in .* on interpreter"):
        autotune.tune(*SHAPE, HERE, Timer(faults=TIMED))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": {"rows": 1}}', '{"a": {"tiles": {}}}'])
def test_a_file_that_is_not_ours_is_as_good_as_none(content):
    autotune.cache_file().write_text(content)
    assert autotune._load() == {}
    autotune.tune(*SHAPE, HERE, Timer())
    assert len(json.loads(autotune.cache_file().read_text())) == 1


def test_rows_count_by_powers_of_two():
    autotune.tune(*SHAPE, HERE, Timer())
    assert autotune._key(*SHAPE, HERE) == autotune._key("forward", 32, *SHAPE[2:], HERE)
    assert autotune._key(*SHAPE, HERE) != autotune._key("forward", 33, *SHAPE[2:], HERE)


@pytest.mark.parametrize("product", tiling.PRODUCTS)
@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_what_is_timed_is_what_compiles_in_every_kernel_of_the_product(target, product):
    proven = tiling.proven(target.name)
    kinds = [kind for kind, (of, _) in tiling.KINDS.items() if of == product and kind in proven]
    timed = autotune.candidates(product, target)
    assert timed
    assert all(tiles in proven[kind] for kind in kinds for tiles in timed)
    assert kinds


def test_nothing_is_measured_unless_asked_for(monkeypatch):
    monkeypatch.delenv("HNKERNELS_AUTOTUNE", raising=False)
    monkeypatch.setattr(autotune, "tune", lambda *_: pytest.fail("measured"))
    assert autotune.kept(*SHAPE, TARGETS["sm_90"]) is None
    monkeypatch.setenv("HNKERNELS_AUTOTUNE", "1")
    assert autotune.enabled()
    assert autotune.kept(*SHAPE, TARGETS["sm_90"]) is None  # there is no such device here


def test_on_a_device_the_kept_tiles_come_first_and_a_captured_graph_measures_nothing(monkeypatch):
    monkeypatch.setenv("HNKERNELS_AUTOTUNE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    target = TARGETS["sm_90"]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(autotune, "target_of", lambda device: target)
    monkeypatch.setattr(autotune, "tune", lambda *_: pytest.fail("measured"))
    assert autotune.choose(*KIND, target) == tiling.heuristic(*SHAPE, target)
    autotune._load()[autotune._key(*SHAPE, target)] = Measured(Tiles(16, 16, 16), 1e-6, 2e-6)
    assert autotune.choose(*KIND, target) == Tiles(16, 16, 16)


def test_what_is_planned_for_another_device_is_not_measured_on_this_one(monkeypatch):
    monkeypatch.setenv("HNKERNELS_AUTOTUNE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(autotune, "target_of", lambda device: TARGETS["sm_90"])
    monkeypatch.setattr(autotune, "tune", lambda *_: pytest.fail("measured"))
    assert autotune.kept(*SHAPE, TARGETS["gfx942"]) is None


@pytest.mark.parametrize(("kernel", "library", "vendor"), [(50e-6, 20e-6, True), (20e-6, 50e-6, False)])
def test_who_was_measured_to_be_faster_multiplies(monkeypatch, kernel, library, vendor):
    target, tiles = TARGETS["sm_80"], Tiles(64, 64, 64)
    monkeypatch.setattr(route, "kept", lambda *_: Measured(tiles, kernel, library))
    shape = (4096, 640, 640)
    found = route.route("linear", *shape, torch.float16, target, tiles, [shape] * 2)
    assert found == (vendor, f"kernel {kernel * 1e6:.1f} µs, library {library * 1e6:.1f}, measured")
