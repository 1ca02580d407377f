"""The one tiling table: from kind of kernel, shape, dtype and architecture to tiles.

``KINDS`` has the matrix kernels: the product that each one's tiles come from, and what becomes of them. For those of an
MLP and its projection ``by_model`` takes the fastest by the model of ``cost.py``, among the tiles that ``proven.csv``
lists: compiled for the target in every form of the kind, without spills and within shared memory. Elsewhere rules of
thumb decide (``heuristic``). ``row_tiles`` has the kernels without a product, ``splits`` and ``row_programs`` say in
how many parts a sum over tokens is made. ``HNKERNELS_AUTOTUNE=1`` lets measurements on the device at hand decide
instead; see ``autotune.py``.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from hnkernels.triton import cost
from hnkernels.triton.cards import CARDS
from hnkernels.triton.target import Target

PRODUCTS = ("forward", "backward", "gradient")
"""``x wᵀ`` with rows of w contiguous; ``x w``; ``daᵀ h``, summed over tokens."""


@dataclass(frozen=True)
class Tiles:
    """How a matrix kernel is cut up.

    Attributes:
        block_m, block_n, block_k: rows, columns and depth of a step. Of a weight gradient: tokens of a step, and
            rows and columns of the weight.
        warps: warps per program.
        stages: loads in flight.
        group_m: tile rows walked together for the sake of the L2 cache.
        splits: into how many parts the depth is cut, each of which leaves a sum of its own, in kernels that can.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int = 4
    stages: int = 3
    group_m: int = 8
    splits: int = 1

    def parts(self, steps: int) -> tuple[int, int]:
        """Steps of a part, and how many parts there are, where the whole depth has so many steps."""
        per_part = max(-(-steps // self.splits), 1)
        return per_part, max(-(-steps // per_part), 1)

    def arguments(self) -> dict[str, int]:
        """As the launch takes them."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "GROUP_M": self.group_m,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


@dataclass(frozen=True)
class Rows:
    """How a kernel without a product is cut up: rows and columns of a step, warps per program."""

    rows: int
    columns: int
    warps: int = 4


HALF = (torch.float16, torch.bfloat16)

_SMALL_SHARED = (86, 89, 120)  # 99 KB a program, where 80 has 163 and 90 and 100 have 227


def candidates(product: str, target: Target) -> tuple[Tiles, ...]:
    """What is compiled for a target, by product; ``proven.csv`` has those that passed."""
    gradient = product == "gradient"
    if target.backend != "cuda":
        if not str(target.arch).startswith("gfx9"):
            return (Tiles(64, 64, 64, 4, 2),) if gradient else (Tiles(64, 64, 32, 4, 2),)
        if gradient:
            return Tiles(64, 64, 64, 4, 2), Tiles(64, 128, 128, 8, 2)
        return Tiles(128, 128, 64, 8, 2), Tiles(128, 64, 32, 4, 2), Tiles(64, 64, 64, 4, 2)
    stages = 3 if target.arch in _SMALL_SHARED else 4
    if gradient:
        small = Tiles(32, 64, 64, 4, 4) if target.arch == 120 else Tiles(64, 64, 64, 4, stages)
        return small, Tiles(64, 128, 64, 4, 3), Tiles(64, 128, 128, 8, 3)
    return (
        Tiles(128, 128, 64, 8, 3),
        Tiles(128, 64, 64, 4, 3),
        Tiles(64, 64, 64, 8 if target.arch == 100 else 4, stages),
        Tiles(16, 64, 64, 4, stages),
        *((Tiles(128, 256, 64, 8, 3),) if target.arch in (90, 100) else ()),
    )


PROVEN = Path(__file__).with_name("proven.csv")

MOST_SPLITS = 4
_SPLIT_ROWS, _SPLIT_DEPTH = 512, 1024
"""With more rows there are enough programs; with less depth there is not enough to share."""

WORTH_A_LAUNCH = 1.05
"""So many times as fast is what takes another launch to be, as a sum in parts does; a model may err by less."""

_forced: ContextVar[Tiles | None] = ContextVar("forced", default=None)


@contextmanager
def forced(tiles: Tiles) -> Iterator[None]:
    """Within it every matrix kernel uses these tiles."""
    token = _forced.set(tiles)
    try:
        yield
    finally:
        _forced.reset(token)


forced_tiles = _forced.get
"""The tiles that every matrix kernel uses now, or ``None``."""


@lru_cache
def proven(target: str) -> Mapping[str, Mapping[Tiles, int]]:
    """By kind of kernel, the tiles that compile for a target in all its forms, and how many programs then fit on a
    processor; nothing for targets that are not compiled for."""
    found: dict[str, dict[Tiles, int]] = {}
    with PROVEN.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["target"] == target:
                sizes = (int(line[name]) for name in ("block_m", "block_n", "block_k", "warps", "stages"))
                found.setdefault(line["kind"], {})[Tiles(*sizes)] = int(line["resident"])
    return found


def fitting(kind: str, tiles: Tiles, target: Target) -> int:
    """How many programs of a kind of kernel run on a processor at once; 1 where that is not known."""
    return proven(target.name).get(kind, {}).get(replace(tiles, splits=1), 1)


def modelled(
    kind: str,
    tiles: Tiles,
    M: int,
    N: int,
    K: int,
    target: Target,
    operations: float = cost.EPILOGUE,
    beside: int = 0,
) -> float:
    """How long the products of K and V in half precision take with these tiles, by the model of ``cost.py``, in
    seconds; what is cut into parts counts for a little more. A context that they share has one gradient.

    Shape: [M, K] × [K, N]; of a weight gradient [N, K], summed over M tokens. The epilogue takes so many operations
    per element, and moves so many elements besides.
    """
    fit, streams = fitting(kind, tiles, target), 1 if kind == "input gradient" else 2
    if KINDS[kind][0] == "gradient":
        blocks, operands, results = (tiles.block_n, tiles.block_k, tiles.block_m), M * N + M * K, N * K
        programs = streams * -(-N // tiles.block_n) * -(-K // tiles.block_k)
        parts = splits(M, programs, tiles.block_m, target, fit)
        steps = -(-M // (parts * tiles.block_m))
    else:
        blocks, operands, results = (tiles.block_m, tiles.block_n, tiles.block_k), M * K + N * K, M * N
        programs = streams * -(-M // tiles.block_m) * -(-N // tiles.block_n)
        steps, parts = tiles.parts(-(-K // tiles.block_k))
    work = cost.Work(programs * parts, steps, *blocks, tiles.warps, tiles.stages, fit, operations)
    moved = operands + results * (1 if parts == 1 else 2 * parts)  # operands from memory, results there; parts in fp32
    product = max(cost.seconds_of_processors(work, target), cost.moving(streams * moved + beside, target))
    return product if parts == 1 else WORTH_A_LAUNCH * (product + cost.adding_up(streams * results, parts, target))


@lru_cache(4096)
def by_model(kind: str, M: int, N: int, K: int, target: Target, most_splits: int = 1) -> Tiles | None:
    """The proven tiles that take the least time by the model, if there are any; of several that take the same, those
    that ``proven.csv`` has first.

    Args:
        most_splits: into how many parts the depth may be cut. Adding them up is another launch.
    """
    listed = proven(target.name).get(kind)
    if not listed:
        return None
    most = most_splits if M <= _SPLIT_ROWS and K >= _SPLIT_DEPTH else 1
    choices = (replace(tiles, splits=n) for n in range(1, most + 1) for tiles in listed)
    return min(choices, key=lambda tiles: modelled(kind, tiles, M, N, K, target))


def heuristic(product: str, M: int, N: int, K: int, dtype: torch.dtype, target: Target) -> Tiles:
    """The tiles of a product.

    Large blocks where there are enough of them to fill the device, small ones else; 128 columns where they leave no
    part of a block empty. What the compiler would spill is left out: on 120 it keeps to fewer registers than there are.
    """
    if target.backend == "interpreter":
        return Tiles(32, 64, 64)  # few programs; tests of the tiling force smaller ones
    if dtype not in HALF:
        return Tiles(64, 64, 32, warps=4, stages=2)
    wide = 128 if N % 128 == 0 or N > 1024 else 64
    many = -(-M // 128) * -(-N // wide) * 2 >= target.processors
    if target.backend != "cuda":
        return _without_cuda(product, wide, many, target)
    stages = 3 if target.arch in _SMALL_SHARED else 4
    if product == "gradient":
        return Tiles(32, 64, 64, 4, 4) if target.arch == 120 else Tiles(64, 64, 64, 4, stages)
    if M <= 32:
        return Tiles(16, 64, 64, 4, stages)
    if many and wide == 128:
        return Tiles(128, 128, 64, 8, 3)
    if many and target.arch != 120:
        return Tiles(128, 64, 64, 4, 3)
    return Tiles(64, 64, 64, 8 if target.arch == 100 else 4, stages)


def _without_cuda(product: str, wide: int, many: bool, target: Target) -> Tiles:
    if product == "gradient":
        return Tiles(64, 64, 64, 4, 2)
    if not str(target.arch).startswith("gfx9"):
        return Tiles(64, 64, 32, 4, 2)  # a thread has 256 registers there, and the epilogues need many
    if not many:
        return Tiles(64, 64, 64, 4, 2)
    return Tiles(128, 128, 64, 8, 2) if wide == 128 else Tiles(128, 64, 32, 4, 2)


def _as_product(tiles: Tiles, block_r: int, target: Target) -> Tiles:
    return tiles


def _normalising(tiles: Tiles, block_r: int, target: Target) -> Tiles:
    """It finishes a LayerNorm's gradients in its epilogue: that takes registers which RDNA lacks."""
    if target.backend != "hip" or str(target.arch).startswith("gfx9"):
        return tiles
    return replace(tiles, block_m=min(tiles.block_m, 32), block_n=min(tiles.block_n, 32))


def _beside_ranks(tiles: Tiles, block_r: int, target: Target) -> Tiles:
    """A product with low-rank factors runs beside it, and needs registers and shared memory too."""
    if target.backend != "cuda":  # steps of 32 load less at a time than the factors do beside them
        return replace(tiles, block_m=64, block_k=64) if (tiles.block_m, tiles.block_k) == (128, 32) else tiles
    if tiles.block_m < 128:
        return replace(tiles, block_k=32) if tiles.block_m == 16 and target.arch in (90, 100) else tiles
    narrow = block_r > 16 and target.arch not in (90, 100)
    return replace(tiles, block_n=64 if narrow else tiles.block_n, warps=8)


def _before_ranks(tiles: Tiles, block_r: int, target: Target) -> Tiles:
    """A product with low-rank factors comes after it, whose operands a thread has no registers for in four warps."""
    return replace(tiles, warps=8) if target.backend == "cuda" and tiles.block_m == 128 else tiles


def _through_ranks(tiles: Tiles, block_r: int, target: Target) -> Tiles:
    """One of its dimensions is a rank: few rows, for there are few programs else."""
    scarce = target.backend == "hip" and not str(target.arch).startswith("gfx9")  # registers
    return replace(tiles, block_m=min(tiles.block_m, 32 if scarce and block_r > 16 else 64))


def _to_ranks(tiles: Tiles, block_r: int, target: Target) -> Tiles:
    """Its columns are the ranks. With many of them 120 spills in four warps."""
    tiles = replace(_through_ranks(tiles, block_r, target), block_n=block_r)
    return replace(tiles, warps=8) if target.arch == 120 and block_r > 32 and tiles.block_m > 16 else tiles


def _from_ranks(tiles: Tiles, block_r: int, target: Target) -> Tiles:
    """Its depth is the ranks, of every slice. Wide tiles read g, whose rows are short, fewer times."""
    if block_r > 16:
        warps = 8 if str(target.arch).startswith("gfx9") else 4
        return replace(_through_ranks(tiles, block_r, target), block_n=128, warps=warps)
    rows = 64 if target.arch == 90 else 32  # wgmma takes no fewer
    return replace(tiles, block_m=min(tiles.block_m, rows), block_n=256, warps=4)


def _from_ranks_and_base(tiles: Tiles, block_r: int, target: Target) -> Tiles:
    """The gradient through the linears comes in too."""
    tiles = _beside_ranks(tiles, block_r, target)
    # The slices' pointers take registers, and so do operands, but where they stay in shared memory.
    if tiles.block_m == 128 and (tiles.block_n == 64 or (target.backend == "cuda" and target.arch not in (90, 100))):
        return replace(tiles, block_k=32, stages=4)
    return tiles


def _of_factors(tiles: Tiles, block_r: int, target: Target) -> Tiles:
    """The columns of its result are the ranks. A thread of four warps runs out of registers where they are many."""
    return replace(tiles, block_k=block_r, warps=8 if block_r > 16 else tiles.warps)


KINDS: dict[str, tuple[str, Callable[[Tiles, int, Target], Tiles]]] = {
    "layer with dropout": ("forward", _as_product),
    "layer": ("forward", _as_product),
    "light layer": ("forward", _as_product),
    "linear": ("forward", _as_product),
    "backward with dropout": ("backward", _as_product),
    "backward": ("backward", _as_product),
    "light backward": ("backward", _as_product),
    "input gradient": ("backward", _as_product),
    "gradient": ("gradient", _as_product),
    "normalising gradient": ("gradient", _normalising),
    "lowrank forward": ("forward", _beside_ranks),
    "lowrank expand": ("forward", _before_ranks),
    "lowrank add": ("forward", _through_ranks),
    "lowrank shrink": ("forward", _to_ranks),
    "lowrank input gradient": ("backward", _from_ranks),
    "lowrank input gradient with base": ("backward", _from_ranks_and_base),
    "lowrank factor gradient": ("gradient", _of_factors),
}
"""Of every kind of matrix kernel: the product whose tiles it has, and what they become, given the ranks filled up.

The less there is in an epilogue, the larger its tiles may be before a thread runs out of registers: dropout takes most;
light are those without prelu, without a LayerNorm on both sides of a layer, without a second output of a gradient.
"""


def ranks_pay_a_launch(
    samples: int,
    tokens: int,
    d: int,
    widths: Sequence[int],
    block_r: int,
    dtype: torch.dtype,
    beside: Tiles,
    expand: Tiles,
    shrink: Tiles,
    target: Target,
) -> bool:
    """Whether linears with low-rank weights take less time by the model where a launch of its own makes u = x Aᵀ, and
    the one that makes x Wᵀ reads it, than where every tile of columns has u made beside it.

    Shape: x [samples, tokens, d], W [n, d] for every n of the widths, u [samples, tokens, block_r] each.

    Args:
        beside, expand, shrink: the tiles of a launch with both, of x Wᵀ, and of x Aᵀ.
    """
    if target.backend == "interpreter":
        return block_r > 16  # so that the tests meet both
    if dtype not in HALF or target.name not in CARDS:
        return False  # the model is one of half precision

    def seconds(tiles: Tiles, columns: Sequence[int], ranks: int, moved: int) -> float:
        blocks = samples * -(-tokens // tiles.block_m) * sum(-(-n // tiles.block_n) for n in columns)
        work = cost.Work(
            blocks, -(-d // tiles.block_k), tiles.block_m, tiles.block_n + ranks, tiles.block_k, tiles.warps,
            tiles.stages, fitting("linear", tiles, target),
        )  # fmt: skip
        return cost.FIRST_LOAD + max(cost.seconds_of_processors(work, target), cost.moving(moved, target))

    x, y, u = (samples * tokens * n for n in (d, sum(widths), 2 * len(widths) * block_r))  # u in fp32
    weights = d * sum(widths)
    together = cost.LAUNCH + seconds(beside, widths, block_r, x + weights + y)
    apart = seconds(shrink, [block_r] * len(widths), 0, x + u) + seconds(expand, widths, 0, x + u + weights + y)
    return together >= WORTH_A_LAUNCH * (2 * cost.LAUNCH + apart)


def row_tiles(kind: str, R: int, C: int, target: Target) -> Rows:
    """How a kernel without a product goes through [R, C]."""
    interpreted = target.backend == "interpreter"  # its time goes by programs and operations, not elements
    if kind in ("whole rows", "summed rows"):
        columns = _power_of_2(C)
        if interpreted:
            return Rows(32, columns)
        fill = max(1, 2048 // columns)  # 16 bytes of every tensor a thread, in eight warps
        if kind == "whole rows":
            rows = min(fill, _power_of_2(R // 256 + 1) // 2 or 1)  # programs first
        else:
            each = -(-R // max(row_programs(R, target), 1))
            rows = min(_power_of_2(each), max(fill, min(_power_of_2(-(-each // 8)), 4096 // columns)))
        return Rows(rows, columns, min(max(rows * columns // 256, 4), 16))
    rows = min(64, _power_of_2(R))
    return {
        # Four loads of 16 bytes in flight per thread; where many rows are added up, few steps after one another.
        "sum": Rows(rows, 4096 if interpreted else min(1024, 2048 // rows)),
        # Many samples are added up one after the other: small blocks spread them.
        "lowrank sum": Rows(min(8, _power_of_2(R)), 4096 if interpreted else 256),
        "norm vectors": Rows(16, 128) if interpreted else Rows(4, 512),
        "normed weight gradient": Rows(64, 256) if interpreted else Rows(32, 64),
    }[kind]


def row_programs(M: int, target: Target) -> int:
    """How many programs share M rows and leave a sum each: by M alone, so that results are the same every time.

    With more than 32 rows a program has too many steps after one another; with fewer its sums are as much as its rows.
    """
    return -(-M // 32) if target.backend == "interpreter" else max(min(-(-M // 4), 256), -(-M // 32))


def splits(M: int, programs: int, block_m: int, target: Target, resident: int = 1, affordable: int = 1) -> int:
    """Into how many parts a sum over M tokens is cut, given the programs that one part has.

    Every part costs a copy of the gradient in fp32, and has some tokens to add up. As many as give every processor one
    program pay in any case: the time falls with them. More, up to the programs that are ``resident`` on each, only
    hide latency; there are to be no more of them than are ``affordable``.
    """
    if target.backend == "interpreter":
        return 2 if block_m < M else 1  # so that the tests meet both
    programs = max(programs, 1)
    wanted = max(target.processors // programs, min(resident * target.processors // programs, affordable))
    return max(1, min(wanted, M // (8 * block_m)))


def _power_of_2(n: int) -> int:
    """The next one, at least 1."""
    return 1 << max(n - 1, 0).bit_length()
