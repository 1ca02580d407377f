"""A stricter model than the roofline: kernels cut up into programs, waves of them, and what a step waits for.

A launch takes its own cost, the first load from memory, and then whichever is longer: its bytes at the memory's
bandwidth, or what its processors do. That is, for ours with tiles, ``hnkernels.triton.cost``, with as many programs on
a processor as the compiled kernel leaves room for; for our row kernels, the loads that follow one another in a program,
in as many waves as there are; for products of eager PyTorch, the best of ``VENDOR``'s tiles and splits by the same
formulas, in the vendor's favour: every one of them fits as often as said, whatever its epilogue, and on Hopper and
later two programs share what they load.

Modelled, not measured. Eager's pointwise operations and reductions run at the memory's bandwidth, whatever their shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from benchmarks.accounting.cases import Accounts, Case
from benchmarks.accounting.eager import Account
from benchmarks.limits.gpus import Gpu
from benchmarks.limits.static import SUMMED, fitting
from benchmarks.rows import Row
from hnkernels.triton.cards import CARDS
from hnkernels.triton.cost import EPILOGUE, FIRST_LOAD, LATER_LOAD, Work, seconds_of_processors
from hnkernels.triton.launch import Launch
from hnkernels.triton.target import TARGETS

QUANTITY = "time by the stricter model"

VENDOR = (
    (128, 256, 64, 8, 3, 1), (256, 128, 64, 8, 3, 1), (128, 128, 64, 8, 3, 2), (128, 64, 64, 4, 4, 3),
    (64, 128, 64, 4, 4, 3), (64, 64, 64, 4, 4, 4), (32, 64, 64, 4, 4, 6),
)  # fmt: skip
"""Rows, columns, depth, warps, stages and programs on a processor of what cuBLAS and hipBLASLt may choose from."""

INSTRUCTIONS = {
    "linear": (594, 594), "relu": (594, 781), "silu": (987, 1435), "gelu": (1434, 1989), "tanh": (1236, 1883),
    "mish": (1243, 1819),
}  # fmt: skip
"""Of epilogues with an activation, and with its derivative and what the weight gradient needs besides: counted by
``python -m benchmarks.compiled.epilogues``. Others are taken for gelu."""

_SPLITS = (1, 2, 4, 8)
_SHARING = ("sm_90", "sm_100")
_DERIVED = ("hidden_gradient_kernel", "normed_gradient_kernel")
_ROW_WARPS = 4


def seconds(account: Account, gpu: Gpu, launch_cost: float) -> float:
    """The predicted time of an account."""
    return sum(launch_cost + launch_seconds(launch, gpu) for launch in account.launches)


def launch_seconds(launch: Launch, gpu: Gpu) -> float:
    """That of one launch, without its cost."""
    memory = (launch.bytes_read + launch.bytes_written) / gpu.bandwidth
    return FIRST_LOAD + max(memory, launch.flops / gpu.matrix_rate, _processors(launch, gpu))


def rows(case: Case, everyone: Mapping[str, Accounts], gpu: Gpu) -> list[Row]:
    """Predicted times of every provider and mode."""
    return [
        Row(
            "modelled", case.benchmark, mode, case.shape, "fp16", provider, QUANTITY,
            seconds(account, gpu, gpu.launch_cost), "s", target=gpu.name,
        )
        for provider, accounts in everyone.items()
        for mode, account in accounts.items()
    ]  # fmt: skip


def _processors(launch: Launch, gpu: Gpu) -> float:
    target = TARGETS[gpu.target]
    if launch.product is not None:
        return vendor_seconds(launch.product, gpu.target, gpu.launch_cost)
    if not launch.steps:
        return 0.0
    if launch.tiles is None:
        card = CARDS[gpu.target]
        at_once = target.processors * min(card.programs, card.warps * card.schedulers // _ROW_WARPS)
        return -(-launch.programs // at_once) * launch.steps * LATER_LOAD
    t = launch.tiles
    summed = launch.kernel in SUMMED
    blocks = (t.block_n, t.block_k, t.block_m) if summed else (t.block_m, t.block_n, t.block_k)
    fit = fitting(gpu.target, launch.kernel, t)
    instructions = INSTRUCTIONS.get(launch.act, INSTRUCTIONS["gelu"])[launch.kernel in _DERIVED]
    operations = EPILOGUE * instructions / INSTRUCTIONS["relu"][0]
    work = Work(launch.programs, launch.steps, *blocks, t.warps, t.stages, fit, operations)
    return seconds_of_processors(work, target)


@lru_cache
def vendor_seconds(product: tuple[int, int, int, int], name: str, launch_cost: float) -> float:
    """A product of batch, M, N and K by the vendor's library; a split one adds up its parts in another launch."""
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
                time += 4 * 2 * split * batch * m * n / CARDS[name].cache_bandwidth + launch_cost + FIRST_LOAD
            times.append(time)
    return min(times)
