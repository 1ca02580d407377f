"""A stricter model than the roofline: kernels cut up into programs, waves of them, and what a step waits for.

A launch takes its own cost, the first load from memory, and then whichever is longer: its bytes at the memory's
bandwidth, or what its processors do. That is, for ours with tiles, ``hnkernels.triton.cost``, with as many programs on
a processor as the compiled kernel leaves room for; for our row kernels, the loads that follow one another in a program,
in as many waves as there are; for products of the vendor's library, the best of its tiles and
splits by the same formulas.

Modelled, not measured. Eager's pointwise operations and reductions run at the memory's bandwidth, whatever their shape.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.accounting.cases import Accounts, Case
from benchmarks.limits.gpus import Gpu
from benchmarks.limits.static import SUMMED, fitting
from benchmarks.rows import Row
from hnkernels.accounting.eager import Account
from hnkernels.triton.cards import CARDS
from hnkernels.triton.cost import (
    FIRST_LOAD,
    LATER_LOAD,
    Work,
    epilogue,
    seconds_of_chain,
    seconds_of_processors,
    vendor_seconds,
)
from hnkernels.triton.launch import Launch
from hnkernels.triton.target import TARGETS

QUANTITY = "time by the stricter model"

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
        return vendor_seconds(launch.product, gpu.target)
    if not launch.steps:
        return 0.0
    if launch.tiles is None:
        card = CARDS[gpu.target]
        at_once = target.processors * min(card.programs, card.warps * card.schedulers // _ROW_WARPS)
        return -(-launch.programs // at_once) * launch.steps * LATER_LOAD
    t = launch.tiles
    operations = epilogue(launch.act, launch.kernel in _DERIVED)
    if launch.chain is not None:
        return seconds_of_chain(launch.chain._replace(operations=operations), launch.programs, launch.steps, target)
    summed = launch.kernel in SUMMED
    blocks = (t.block_n, t.block_k, t.block_m) if summed else (t.block_m, t.block_n, t.block_k)
    fit = fitting(gpu.target, launch.kernel, t)
    work = Work(launch.programs, launch.steps, *blocks, t.warps, t.stages, fit, operations)
    return seconds_of_processors(work, target)
