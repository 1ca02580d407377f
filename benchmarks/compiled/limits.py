"""What the targets allow a kernel, and how many of its warps run at a time.

NVIDIA: the tables of the CUDA programming guide. AMD: the CDNA 3 and RDNA 3 instruction set guides.
"""

from __future__ import annotations

from dataclasses import dataclass

from hnkernels.triton.target import Target

_KB = 1024


@dataclass(frozen=True)
class Limits:
    """Of a multiprocessor, or a compute unit.

    Attributes:
        shared: bytes that one program may take.
        shared_in_all: bytes that there are.
        shared_reserved: bytes that every program takes besides.
        registers: per scheduler, each of them as wide as a warp.
        step: of registers per warp, in which they are given out.
        schedulers: or SIMD units.
        warps: per scheduler.
        programs: in all.
    """

    shared: int
    shared_in_all: int
    shared_reserved: int
    registers: int
    step: int
    schedulers: int
    warps: int
    programs: int


def _nvidia(shared: int, shared_in_all: int, warps: int, programs: int) -> Limits:
    return Limits(shared * _KB, shared_in_all * _KB, _KB, 512, 8, 4, warps // 4, programs)


LIMITS = {
    "sm_80": _nvidia(163, 164, 64, 32),
    "sm_86": _nvidia(99, 100, 48, 16),
    "sm_89": _nvidia(99, 100, 48, 24),
    "sm_90": _nvidia(227, 228, 64, 32),
    "sm_100": _nvidia(227, 228, 64, 32),
    "sm_120": _nvidia(99, 100, 48, 24),
    "gfx942": Limits(64 * _KB, 64 * _KB, 0, 512, 8, 4, 8, 32),
    "gfx1100": Limits(64 * _KB, 64 * _KB, 0, 1536, 24, 2, 16, 32),
}


def occupancy(target: Target, registers: int, shared: int, warps: int) -> float:
    """The share of the warps that fit at once, given a program's registers per thread, shared memory and warps."""
    limits = LIMITS[target.name]
    rounded = max(-(-registers // limits.step), 1) * limits.step
    by_registers = min(limits.registers // rounded, limits.warps) * limits.schedulers // warps
    by_shared = limits.shared_in_all // max(shared + limits.shared_reserved, 1)
    return min(by_registers, by_shared, limits.programs) * warps / (limits.warps * limits.schedulers)
