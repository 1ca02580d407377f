"""The model that tiles are chosen by, and the list that it chooses from."""

from __future__ import annotations

import pytest
import torch

from hnkernels.triton import cost
from hnkernels.triton.autotune import choose
from hnkernels.triton.cards import CARDS, resident
from hnkernels.triton.cost import Work, seconds_of_processors
from hnkernels.triton.target import TARGETS, Target
from hnkernels.triton.tiling import KINDS, Tiles, by_model, heuristic, modelled, proven

A100, H100 = TARGETS["sm_80"], TARGETS["sm_90"]
MODELLED = (
    "layer", "light layer", "layer with dropout", "linear", "backward", "light backward", "backward with dropout",
    "input gradient", "gradient", "normalising gradient",
)  # fmt: skip
SHAPES = [
    (4096, 640, 320), (8192, 320, 960), (1024, 1280, 640), (256, 2560, 1280), (64, 1280, 3840), (1024, 1280, 2560),
    (77, 1536, 768), (154, 1280, 2304), (16, 320, 640), (1, 8, 8), (0, 640, 320), (5000, 1000, 1000), (16384, 640, 320),
]  # fmt: skip


def work(tiles: Tiles, programs: int, steps: int, fit: int = 1) -> Work:
    return Work(programs, steps, tiles.block_m, tiles.block_n, tiles.block_k, tiles.warps, tiles.stages, fit)


def test_one_program_by_hand():
    # 128 x 128 x 64 on an A100: 2,048 FLOP a cycle, of which eight warps reach 8 / (8 + 2).
    cycles = 312e12 / 1.41e9 / 108
    multiplying = 2 * 128 * 128 * 64 / cycles * (8 + cycles / 1024) / 8
    epilogue = 128 * 128 * cost.EPILOGUE / 64
    expected = (10 * multiplying + epilogue) / 1.41e9
    assert seconds_of_processors(work(Tiles(128, 128, 64, 8, 3), 1, 10), A100) == pytest.approx(expected)


def test_a_wave_begun_is_a_wave_paid_for():
    tiles = Tiles(128, 128, 64, 8, 3)
    full = seconds_of_processors(work(tiles, 108, 10), A100)
    assert seconds_of_processors(work(tiles, 109, 10), A100) == pytest.approx(2 * full)
    assert seconds_of_processors(work(tiles, 216, 10), A100) == pytest.approx(2 * full)
    # Two at a time keep the matrix units busier than one after the other.
    assert seconds_of_processors(work(tiles, 216, 10, fit=2), A100) < 2 * full


def test_small_tiles_are_bound_by_the_cache_and_deep_pipelines_wait_less():
    small, large = Tiles(64, 64, 64, 4, 4), Tiles(128, 128, 64, 8, 3)
    per_flop = [seconds_of_processors(work(t, 132, 100), H100) / (t.block_m * t.block_n) for t in (small, large)]
    assert per_flop[0] > 1.9 * per_flop[1]  # half as many FLOP per byte
    shallow, deep = (seconds_of_processors(work(Tiles(16, 64, 64, 4, s), 8, 100), H100) for s in (2, 4))
    assert deep < shallow


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_more_work_never_takes_less(target):
    tiles = Tiles(128, 128, 64, 8, 3)
    for fit in (1, 2, 3):
        by_programs = [seconds_of_processors(work(tiles, n, 10, fit), target) for n in (1, 20, 100, 300, 301, 1000)]
        by_steps = [seconds_of_processors(work(tiles, 100, n, fit), target) for n in (1, 2, 5, 40)]
        assert by_programs == sorted(by_programs)
        assert by_steps == sorted(by_steps)


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_the_list_has_tiles_that_fit_for_every_kind(target):
    kinds = set(MODELLED) - ({"normalising gradient"} if target.scarce_registers else set())
    assert set(proven(target.name)) == kinds <= set(KINDS)
    card = CARDS[target.name]
    for kind, listed in proven(target.name).items():
        for tiles, fit in listed.items():
            assert 1 <= fit <= resident(target, 16, 0, tiles.warps)
            m, n, k = tiles.block_m, tiles.block_n, tiles.block_k
            loads = (
                2 * (tiles.stages - 1) * (m * (n + k) if "input" not in kind and "gradient" in kind else k * (m + n))
            )
            assert loads <= card.shared or target.backend == "hip"  # AMD's are in registers on their way


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize("kind", MODELLED)
def test_the_fastest_of_the_list_is_taken(kind, target):
    for M, N, K in SHAPES if kind in proven(target.name) else []:
        tiles = by_model(kind, M, N, K, target)
        times = {t: modelled(kind, t, M, N, K, target) for t in proven(target.name)[kind]}
        assert times[tiles] == min(times.values())
        assert choose(kind, M, N, K, torch.bfloat16, target) == tiles
        ruled = heuristic(KINDS[kind][0], M, N, K, torch.float16, target)
        assert ruled not in times or times[tiles] <= times[ruled]


def test_the_depth_is_cut_where_that_pays_and_nowhere_else():
    def splits(kind: str, M: int, N: int, K: int, target: Target, most: int = 4) -> int:
        tiles = by_model(kind, M, N, K, target, most)
        assert tiles is not None
        return tiles.splits

    assert splits("linear", 64, 1280, 3840, A100) > 1
    assert splits("input gradient", 77, 2048, 8192, H100) > 1
    assert splits("linear", 64, 1280, 3840, A100, most=1) == 1
    assert splits("linear", 4096, 320, 960, A100) == splits("linear", 4096, 1280, 3840, A100) == 1
    assert splits("linear", 256, 1280, 1280, A100) == 1  # another launch would cost more
    for M, N, K in SHAPES:
        best = by_model("linear", M, N, K, A100, 4)
        assert best is not None
        assert best.splits == 1 or (M <= 512 and K >= 1024)


@pytest.mark.parametrize(
    ("steps", "splits", "parts"), [(60, 4, (15, 4)), (5, 4, (2, 3)), (1, 4, (1, 1)), (0, 3, (1, 1))]
)
def test_parts_cover_the_depth_and_none_is_empty(steps, splits, parts):
    assert Tiles(64, 64, 64, splits=splits).parts(steps) == parts


def test_what_is_not_listed_goes_by_the_rules():
    unknown = Target("cuda", 75, 40)
    assert by_model("layer", 4096, 640, 320, unknown) is None
    assert choose("layer", 4096, 640, 320, torch.float16, unknown) == heuristic(
        "forward", 4096, 640, 320, torch.float16, unknown
    )
    assert choose("layer", 4096, 640, 320, torch.float32, A100) == Tiles(64, 64, 32, 4, 2)
    for kind in set(KINDS) - set(MODELLED):
        assert by_model(kind, 4096, 640, 320, A100) is None


def test_a_smaller_card_of_the_same_target_counts_its_own_processors():
    shape, tiles = (4096, 640, 320), Tiles(128, 128, 64, 8, 3)
    small = modelled("layer", tiles, *shape, Target("cuda", 89, 24))
    assert small > 4 * modelled("layer", tiles, *shape, TARGETS["sm_89"])


def test_a_bad_tail_is_seen():
    # 160 programs of 128 x 128 on 132 processors take as long as 264; larger tiles are done in one wave.
    assert by_model("linear", 1024, 1280, 3840, H100) == Tiles(128, 256, 64, 8, 3)
    # 64 x 64 tiles would make 32 FLOP of every byte from the cache.
    assert by_model("layer", 256, 2560, 1280, H100) == Tiles(128, 128, 64, 8, 3)
