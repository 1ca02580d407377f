"""The cards that kernels are planned for: what a processor of each has, what all share, how many programs fit.

One card per target, the largest common one. A processor is a streaming multiprocessor, or a compute unit. What fits:
NVIDIA's CUDA programming guide; AMD's CDNA 3 and RDNA 3 instruction set guides. Rates and clocks: data sheets and
architecture white papers. What the L2 cache delivers its makers mostly leave out: rounded from what readers of these
cards have published, and the least certain of all. Nothing here has been measured for this project.
"""

from __future__ import annotations

from dataclasses import dataclass

from hnkernels.triton.target import Target

_KB = 1024


@dataclass(frozen=True)
class Card:
    """One card.

    Attributes:
        clock: cycles per second, the boost that its matrix rate is quoted for.
        matrix_rate: products of fp16 or bf16 added up in fp32, FLOP/s, of the whole card.
        bandwidth: of its memory, B/s.
        cache_bandwidth: of the cache that all processors share, B/s.
        lanes: fp32 operations that a processor starts in a cycle.
        shared: bytes of shared memory that one program may take.
        shared_in_all: bytes that a processor has.
        shared_reserved: bytes that every program takes besides.
        registers: per scheduler, each of them as wide as a warp.
        step: of registers per warp, in which they are given out.
        schedulers: or SIMD units, of a processor.
        warps: per scheduler, at most.
        programs: per processor, at most.
    """

    clock: float
    matrix_rate: float
    bandwidth: float
    cache_bandwidth: float
    lanes: int
    shared: int
    shared_in_all: int
    shared_reserved: int
    registers: int
    step: int
    schedulers: int
    warps: int
    programs: int


def _nvidia(rates: tuple[float, float, float, float, int], shared: int, all_shared: int, warps: int, programs: int):
    return Card(*rates, shared * _KB, all_shared * _KB, _KB, 512, 8, 4, warps // 4, programs)


CARDS = {
    "sm_80": _nvidia((1.41e9, 312e12, 2.039e12, 5e12, 64), 163, 164, 64, 32),  # A100 SXM, 80 GB
    "sm_86": _nvidia((1.695e9, 71e12, 0.936e12, 2.5e12, 128), 99, 100, 48, 16),  # RTX 3090
    "sm_89": _nvidia((2.52e9, 165.2e12, 1.008e12, 5e12, 128), 99, 100, 48, 24),  # RTX 4090
    "sm_90": _nvidia((1.83e9, 989.4e12, 3.35e12, 7e12, 128), 227, 228, 64, 32),  # H100 SXM
    "sm_100": _nvidia((1.85e9, 2250e12, 8e12, 12e12, 128), 227, 228, 64, 32),  # B200
    "sm_120": _nvidia((2.41e9, 209.5e12, 1.792e12, 7e12, 128), 99, 100, 48, 24),  # RTX 5090
    "gfx942": Card(2.1e9, 1307.4e12, 5.3e12, 17e12, 128, 64 * _KB, 64 * _KB, 0, 512, 8, 4, 8, 32),  # MI300X
    "gfx1100": Card(2.5e9, 122.8e12, 0.96e12, 3.5e12, 128, 64 * _KB, 64 * _KB, 0, 1536, 24, 2, 16, 32),  # RX 7900 XTX
}
"""By the name of the target. The last one's cache is the one beside its memory controllers, as the MI300X's."""


def resident(target: Target, registers: int, shared: int, warps: int) -> int:
    """How many programs run on a processor at once, given what each takes: registers per thread, bytes, warps."""
    card = CARDS[target.name]
    rounded = max(-(-registers // card.step), 1) * card.step
    by_registers = min(card.registers // rounded, card.warps) * card.schedulers // warps
    by_shared = card.shared_in_all // max(shared + card.shared_reserved, 1)
    return min(by_registers, by_shared, card.programs)


def occupancy(target: Target, registers: int, shared: int, warps: int) -> float:
    """The share of the warps that fit at once."""
    card = CARDS[target.name]
    return resident(target, registers, shared, warps) * warps / (card.warps * card.schedulers)
