"""What every compiled kernel is held to."""

from __future__ import annotations

from benchmarks.compiled.compilation import Configuration
from benchmarks.compiled.machine_code import MachineCode
from hnkernels.triton.cards import CARDS

LEAST_WGMMA_ROWS = 64
WIDE_LOAD = 16


def faults(config: Configuration, code: MachineCode) -> list[str]:
    """What is wrong with a kernel; nothing, if it is fine."""
    found = []
    if code.stack or code.spills:
        found.append(f"{code.stack} bytes of stack, {code.spills} spills")
    limit = CARDS[config.target.name].shared
    if code.shared > limit:
        found.append(f"{code.shared} bytes of shared memory, {limit} are there")
    if not config.is_product:
        return found
    if not code.matrix:
        found.append("no matrix instructions")
    elif not code.matrix_share:
        found.append("no matrix instructions in a loop")
    elif config.target.name == "sm_90" and config.product_rows >= LEAST_WGMMA_ROWS and "HGMMA" not in code.matrix:
        found.append("no wgmma")
    if code.load_bytes < WIDE_LOAD:
        found.append(f"loads {code.load_bytes} bytes at a time in the loop")
    return found
