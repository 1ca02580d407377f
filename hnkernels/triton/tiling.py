"""The one tiling table: from kind of product, shape, dtype and architecture to tiles, by rules of thumb.

Every row that the rules can choose is compiled for every target in the tests, without spills and within the target's
shared memory. ``HNKERNELS_AUTOTUNE=1`` lets measurements on the device at hand decide instead; see ``autotune.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch

from hnkernels.triton.target import Target

KINDS = ("forward", "backward", "gradient")
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
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int = 4
    stages: int = 3
    group_m: int = 8

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


_SMALL_SHARED = (86, 89, 120)  # 99 KB a program, where 80 has 163 and 90 and 100 have 227

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


def heuristic(kind: str, M: int, N: int, K: int, dtype: torch.dtype, target: Target) -> Tiles:
    """The table.

    Large blocks where there are enough of them to fill the device, small ones else; 128 columns where they leave no
    part of a block empty. What the compiler would spill is left out: on 120 it keeps to fewer registers than there are.
    """
    if target.backend == "interpreter":
        return Tiles(32, 64, 64)  # few programs; tests of the tiling force smaller ones
    if dtype not in (torch.float16, torch.bfloat16):
        return Tiles(64, 64, 32, warps=4, stages=2)
    wide = 128 if N % 128 == 0 or N > 1024 else 64
    many = -(-M // 128) * -(-N // wide) * 2 >= target.processors
    if target.backend != "cuda":
        return _without_cuda(kind, wide, many, target)
    stages = 3 if target.arch in _SMALL_SHARED else 4
    if kind == "gradient":
        return Tiles(32, 64, 64, 4, 4) if target.arch == 120 else Tiles(64, 64, 64, 4, stages)
    if M <= 32:
        return Tiles(16, 64, 64, 4, stages)
    if many and wide == 128:
        return Tiles(128, 128, 64, 8, 3)
    if many and target.arch != 120:
        return Tiles(128, 64, 64, 4, 3)
    return Tiles(64, 64, 64, 8 if target.arch == 100 else 4, stages)


def _without_cuda(kind: str, wide: int, many: bool, target: Target) -> Tiles:
    if kind == "gradient":
        return Tiles(64, 64, 64, 4, 2)
    if not str(target.arch).startswith("gfx9"):
        return Tiles(64, 64, 32, 4, 2)  # a thread has 256 registers there, and the epilogues need many
    if not many:
        return Tiles(64, 64, 64, 4, 2)
    return Tiles(128, 128, 64, 8, 2) if wide == 128 else Tiles(128, 64, 32, 4, 2)


def normalising(tiles: Tiles, target: Target) -> Tiles:
    """A weight gradient's tiles where it normalises activations on the way: that takes registers which RDNA lacks."""
    if target.backend != "hip" or str(target.arch).startswith("gfx9"):
        return tiles
    return replace(tiles, block_m=min(tiles.block_m, 32), block_n=min(tiles.block_n, 32))


def beside_ranks(tiles: Tiles, block_r: int, target: Target) -> Tiles:
    """A product's tiles where one with low-rank factors runs beside it, and needs registers and shared memory too."""
    if target.backend != "cuda":  # steps of 32 load less at a time than the factors do beside them
        return replace(tiles, block_m=64, block_k=64) if (tiles.block_m, tiles.block_k) == (128, 32) else tiles
    if tiles.block_m < 128:
        return replace(tiles, block_k=32) if tiles.block_m == 16 and target.arch in (90, 100) else tiles
    narrow = block_r > 16 and target.arch not in (90, 100)
    return replace(tiles, block_n=64 if narrow else tiles.block_n, warps=8)


def of_ranks(tiles: Tiles, block_r: int, target: Target) -> Tiles:
    """A product's tiles where one of its dimensions is a rank: few rows, for there are few programs else."""
    scarce = target.backend == "hip" and not str(target.arch).startswith("gfx9")  # registers
    return replace(tiles, block_m=min(tiles.block_m, 32 if scarce and block_r > 16 else 64))


def splits(M: int, programs: int, block_m: int, target: Target) -> int:
    """Into how many parts a sum over M tokens is cut, given the programs that one part has.

    Few: every part costs a copy of the gradient in fp32. Only so many that the device is about full, and every part
    has some tokens to add up.
    """
    if target.backend == "interpreter":
        return 2 if block_m < M else 1  # so that the tests meet both
    return max(1, min(target.processors // max(programs, 1), M // (8 * block_m)))
