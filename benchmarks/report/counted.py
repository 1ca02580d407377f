"""What is the same on every machine, as tables: counted on the meta device, modelled, read from compiled code."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.accounting import figures
from benchmarks.limits import tables
from benchmarks.rows import Row, select

SHAPE = "320 x 8192"
"""K and V of one attention layer of Stable Diffusion 1.x, two pictures of 512 pixels at once."""

NETWORKS = {
    "relu": "relu",
    "silu": "silu",
    "relu + LayerNorm": "relu, LayerNorm",
    "silu + LayerNorm": "silu, LayerNorm",
}


def heading(rows: Sequence[Row]) -> str:
    """With what, and how it is known."""
    return f"Counted, compiled and modelled, not measured: the same on any machine; {rows[0].versions}."


def launches(rows: Sequence[Row]) -> list[str]:
    """The kernels against the web UIs' way in eager PyTorch, at one shape."""
    lines = [
        "| network `[1, 2, 1]` | launches: inference | forward | backward | bytes moved by a training step "
        "| bytes saved for backward | most bytes at once |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for network, text in NETWORKS.items():
        found = {
            (row.provider, row.mode, row.quantity): row.value
            for row in select(rows, benchmark=f"projection, {network}", shape=SHAPE, kind="counted")
        }
        if not found:
            continue
        counts = [
            f"{found['triton', mode, 'launches']:.0f} ({'eager ' if mode == 'inference' else ''}"
            f"{found['reference', mode, 'launches']:.0f})"
            for mode in ("inference", "forward", "backward")
        ]
        step = "forward + backward"
        ratios = [
            f"{found['triton', step, q] / found['reference', step, q]:.2f} of eager's"
            for q in ("bytes", "saved", "peak")
        ]
        lines.append(f"| {text} | {' | '.join([*counts, *ratios])} |")
    return lines


def account(rows: Sequence[Row]) -> list[str]:
    """Every provider at every shape, with the ratio to the bound."""
    return figures.markdown(select(rows, kind="counted"))


def limits(rows: Sequence[Row]) -> list[str]:
    """Predicted times on four GPUs."""
    return tables.predicted(select(rows, kind="modelled"))


def code(rows: Sequence[Row]) -> list[str]:
    """What the compiled kernels of the plan look like."""
    return tables.compiled(select(rows, kind="compiled"))
