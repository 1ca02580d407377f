"""What a product costs by its tiles: the model that the tile table is chosen by. Modelled, not measured.

A processor runs as many programs at a time as fit, and the programs that fall to the busiest one come in as many
turns. A step of the main loop takes as long as the slowest of four things:

- its multiplications, at the matrix rate times w / (w + h): w warps run at once, and h of them would reach half the
  rate, one for every 1024 FLOP that the processor finishes in a cycle;
- reading its tiles from shared memory, 128 bytes a cycle, and writing them there. Where matrix instructions take
  operands from registers, every warp reads its own rows and columns; where from shared memory, every group of four;
- reading its tiles from the cache that all processors share, of which every one at work has its part, 64 bytes a
  cycle at most;
- waiting for them: a load answers after 0.3 µs, and all stages but one are under way, in all programs that run.

After the loop comes the epilogue, some operations for every element. A launch takes no less than its bytes at the
memory's bandwidth, and the first load from there, 0.6 µs; that of later programs overlaps with others.

The vendor's library takes the best of ``VENDOR``'s tiles and splits by the same formulas, in its favour: every one of
them fits as often as said, whatever its epilogue, and on Hopper and later two programs share what they load.

Left out: what a program finds in the cache of its own processor, bank conflicts, clocks below the boost.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from hnkernels.triton.cards import CARDS
from hnkernels.triton.target import TARGETS, Target

SHARED_PER_CYCLE, CACHED_PER_CYCLE = 128, 64
FIRST_LOAD = 0.6e-6
LATER_LOAD = 0.3e-6
EPILOGUE = 12
"""Operations per element: relu's, with bias, rounding and the store, as compiled for sm_90."""

INSTRUCTIONS = {
    "linear": (551, 557), "relu": (551, 727), "silu": (935, 1383), "gelu": (1383, 1935), "tanh": (1191, 1831),
    "mish": (1191, 1767),
}  # fmt: skip
"""Of epilogues with an activation, and with its derivative and what the weight gradient needs besides: counted by
``python -m benchmarks.compiled --epilogues``. Others are taken for gelu."""

LAUNCH = 0.9e-6
"""What a launch costs besides; see ``benchmarks/roofline.py``."""

VENDOR = (
    (128, 256, 64, 8, 3, 1), (256, 128, 64, 8, 3, 1), (128, 128, 64, 8, 3, 2), (128, 64, 64, 4, 4, 3),
    (64, 128, 64, 4, 4, 3), (64, 64, 64, 4, 4, 4), (32, 64, 64, 4, 4, 6),
)  # fmt: skip
"""Rows, columns, depth, warps, stages and programs on a processor of what cuBLAS and hipBLASLt may choose from."""

_SPLITS = (1, 2, 4, 8)
_SHARING = ("sm_90", "sm_100")

_ELEMENT, _SUM = 2, 4  # bytes
_FROM_SHARED = ("sm_90", "sm_100")  # wgmma and tcgen05


class Work(NamedTuple):
    """A launch that multiplies.

    Attributes:
        programs: how many.
        steps: of the main loop of one.
        rows, columns, depth: of the product of a step.
        warps: per program.
        stages: of the pipeline of loads.
        resident: programs that fit on a processor.
        operations: of the epilogue, per element.
    """

    programs: int
    steps: int
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    resident: int
    operations: float = EPILOGUE


class Chain(NamedTuple):
    """Two products in one loop, where a chunk of the first one's result is an operand of the second one's step.

    Attributes:
        programs: how many; one at a time on a processor.
        steps: of the loop of one.
        rows: of both products; their rows of the first operand stay in shared memory.
        first: depth of the first product.
        second: columns of the second.
        depth: of a step: columns of the first product, units of the second.
        warps: per program.
        stages: of the pipeline of loads.
        operations: between the two, per element.
    """

    programs: int
    steps: int
    rows: int
    first: int
    second: int
    depth: int
    warps: int
    stages: int
    operations: float = EPILOGUE


def seconds_of_chain(chain: Chain, programs: int, steps: int, target: Target) -> float:
    """How long the processors take for the loop, and for the product after it in the same accumulator, which has so
    many steps, in so many programs: more than the chain's where some have no other."""
    card = CARDS[target.name]
    weights = chain.depth * (chain.first + chain.second)  # elements of a step
    down = min(max(chain.warps // 4, 1), max(chain.rows // 64, 1))  # groups of four warps above one another
    across = max(chain.warps // 4, 1) // down
    handed_over = chain.rows * chain.depth * (1 + across if across > 1 else 0)  # else it stays in registers
    shared = _ELEMENT * (chain.rows * chain.first * across + weights * (down + 1) + handed_over) / SHARED_PER_CYCLE
    per_cycle, cached = _rates(chain.programs, target)
    multiplying = 2 * chain.rows * weights / per_cycle * (chain.warps + per_cycle / 1024) / chain.warps
    between = chain.rows * chain.depth * chain.operations / card.lanes
    waiting = LATER_LOAD * card.clock / max(chain.stages - 1, 1)
    # The second product waits for the first one's result; loads go on meanwhile.
    step = max(max(multiplying, shared) + between, _ELEMENT * weights / cached, waiting)
    after = Work(programs, steps, chain.rows, chain.second, chain.depth, chain.warps, chain.stages, resident=1)
    turns = -(-chain.programs // target.processors)
    return turns * chain.steps * step / card.clock + seconds_of_processors(after, target)


def seconds_of_processors(work: Work, target: Target, sharing: int = 1) -> float:
    """How long the processors take, without the memory's bandwidth, the first load and the launch.

    Args:
        sharing: programs that load what they have in common once, as a cluster of Hopper's may.
    """
    if work.programs == 0:
        return 0.0
    card = CARDS[target.name]
    turns = -(-work.programs // target.processors)
    at_once = min(turns, work.resident)
    whole, rest = divmod(turns, at_once)
    cycles = whole * at_once * _per_program(work, at_once, target, sharing)
    if rest:
        cycles += rest * _per_program(work, rest, target, sharing)
    return cycles / card.clock


@lru_cache(4096)
def vendor_seconds(product: tuple[int, int, int, int], name: str) -> float:
    """A product of batch, M, N and K by the vendor's library on the target of this name, without the memory's
    bandwidth, the first load and the launch; a split one adds up its parts in another launch."""
    batch, m, n, k = product
    target = TARGETS[name]
    times = []
    for rows, columns, depth, warps, stages, fit in VENDOR:
        tiles = batch * -(-m // rows) * -(-n // columns)
        for split in _SPLITS:
            steps = -(-k // (depth * split))
            work = Work(tiles * split, steps, rows, columns, depth, warps, stages, fit)
            time = seconds_of_processors(work, target, sharing=2 if name in _SHARING else 1)
            if split > 1:
                time += _SUM * 2 * split * batch * m * n / CARDS[name].cache_bandwidth + LAUNCH + FIRST_LOAD
            times.append(time)
    return min(times)


def epilogue(act: str, derived: bool) -> float:
    """Operations per element of an epilogue with this activation, or with its derivative."""
    return EPILOGUE * INSTRUCTIONS.get(act, INSTRUCTIONS["gelu"])[derived] / INSTRUCTIONS["relu"][0]


def adding_up(elements: int, parts: int, target: Target) -> float:
    """How long it takes to add up the parts of so many elements: another launch, which reads them from memory."""
    return LAUNCH + FIRST_LOAD + (_SUM * parts + _ELEMENT) * elements / CARDS[target.name].bandwidth


def moving(elements: int, target: Target) -> float:
    """How long it takes to read so many elements from memory, or to write them."""
    return _ELEMENT * elements / CARDS[target.name].bandwidth


def _per_program(work: Work, at_once: int, target: Target, sharing: int) -> float:
    """Cycles of one program where so many run at a time, each of which has its share of the processor."""
    card = CARDS[target.name]
    tiles = work.rows + work.columns
    warps = at_once * work.warps
    per_cycle, cached = _rates(work.programs, target)
    multiplying = 2 * work.rows * work.columns * work.depth / per_cycle * (warps + per_cycle / 1024) / warps
    shared = _ELEMENT * work.depth * (_read_from_shared(work, target) + tiles) / SHARED_PER_CYCLE
    waiting = LATER_LOAD * card.clock / max(work.stages - 1, 1) / at_once
    step = max(multiplying, shared, _ELEMENT * work.depth * tiles / (sharing * cached), waiting)
    epilogue = work.rows * work.columns * work.operations / card.lanes / min(1, warps / card.schedulers)
    return work.steps * step + epilogue


def _rates(programs: int, target: Target) -> tuple[float, float]:
    """Of a processor, per cycle: FLOP, and bytes from the cache that all those share which have a program."""
    card = CARDS[target.name]
    per_cycle, of_cache = (
        rate / (card.clock * TARGETS[target.name].processors) for rate in (card.matrix_rate, card.cache_bandwidth)
    )
    return per_cycle, min(of_cache * target.processors / min(programs, target.processors), CACHED_PER_CYCLE)


def _read_from_shared(work: Work, target: Target) -> int:
    """Rows and columns that the warps of a program read for a step, those that several of them read more than once."""
    if target.name in _FROM_SHARED:
        return work.rows + work.columns * max(work.warps // 4, 1)
    down = 1  # warps one above the other: those that leave each the squarest part
    while down < work.warps and work.rows // down >= work.columns // (work.warps // down) and work.rows // down > 16:
        down *= 2
    return work.rows * (work.warps // down) + work.columns * down
