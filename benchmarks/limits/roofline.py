"""A roofline: from an account to the time that a GPU would take at best. Modelled, not measured.

A launch takes as long as its products at the matrix rate or its bytes at the memory's bandwidth, whichever is longer
(Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009), and the cost of a launch; launches follow one another:

    time = Σ max(FLOPs / matrix rate, bytes / bandwidth) + launch cost

The floor is the same of the compulsory bound, which is one launch. As nobody's account is below the bound, and a
maximum of sums is at most the sum of maxima, no prediction is below the floor.

Left out: what a launch finds in the L2 cache from the one before; the time of a device that is not full; what pointwise
arithmetic takes; and in eager PyTorch the CPU's work for every operation, which alone is several microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.accounting.cases import Accounts, Case
from benchmarks.limits.gpus import Gpu
from benchmarks.rows import Row
from hnkernels.accounting.eager import Account


def seconds(account: Account, gpu: Gpu, launch_cost: float) -> float:
    """The predicted time of an account whose products are in fp16 or bf16."""
    return sum(
        max(launch.flops / gpu.matrix_rate, (launch.bytes_read + launch.bytes_written) / gpu.bandwidth) + launch_cost
        for launch in account.launches
    )


def rows(case: Case, everyone: Mapping[str, Accounts], gpu: Gpu) -> list[Row]:
    """Predicted times of every provider and mode; where it is known what a launch costs in a graph, in one as well."""
    costs = {"time": gpu.launch_cost, "time in a graph": gpu.graph_cost}
    return [
        Row(
            "modelled", case.benchmark, mode, case.shape, "fp16", provider, quantity,
            seconds(account, gpu, cost), "s", target=gpu.name,
        )
        for quantity, cost in costs.items()
        if cost is not None
        for provider, accounts in everyone.items()
        for mode, account in accounts.items()
    ]  # fmt: skip
