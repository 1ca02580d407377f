"""``python -m benchmarks.accounting``: counts all shapes, writes benchmarks/results/any/counted.csv, prints the tables.

Takes about a minute, nearly all of it for compiling the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import triton

from benchmarks import counting
from benchmarks.bound import bounds
from benchmarks.counting import Accounts
from benchmarks.rows import Row, stamped, write
from benchmarks.shapes import LAYERS, NETWORKS, PROMPT, SAMPLES, SD15_TEXT, SDXL_TEXT, Samples, Shape
from hnkernels.accounting.eager import Account

FILE = Path(__file__).with_name("results") / "any" / "counted.csv"

COUNTED: tuple[Shape, ...] = (
    *(layer.of(network) for network in NETWORKS for layer in LAYERS),
    SD15_TEXT, SDXL_TEXT,
    SAMPLES[0], Samples(320, 1024, (320, 320, 320)), SAMPLES[1], Samples(768, PROMPT, (640, 640)),
)  # fmt: skip

UNITS = {"launches": "1", "flops": "FLOP", "bytes": "B", "saved": "B", "peak": "B"}

_HEADINGS = {"launches": ("launches", 1), "flops": ("GFLOP", 1e9), "bytes": ("MB moved", 1e6),
             "saved": ("MB saved", 1e6), "peak": ("MB at once", 1e6)}  # fmt: skip


def named(shape: Shape) -> tuple[str, str]:
    """Benchmark and shape, as rows of what is counted have them."""
    size = f"{shape.width} x {shape.tokens}"
    if isinstance(shape, Samples):
        return "lowrank", size + {1: "", 2: ", k v", 3: ", q k v"}[len(shape.outs)]
    if len(shape.outs) == 1:
        return f"projection, {shape.network.name}", size
    return f"cross attention, {shape.network.name}", f"{len(shape.outs)} layers, {size}"


def count(chosen: Sequence[Shape] = COUNTED, compiled: bool = True) -> list[Row]:
    """The figures of all shapes, or of some, by all providers and of the bound; ``torch.compile``'s only if wanted."""
    rows: list[Row] = []
    for shape in chosen:
        names = [*counting.providers(shape), *(["compile"] if compiled and counting.compilable(shape) else [])]
        everyone = {name: counting.accounts(shape, name) for name in names}
        counted = {mode for accounts in everyone.values() for mode in accounts}
        everyone["bound"] = {mode: account for mode, account in bounds(shape).items() if mode in counted}
        for provider, accounts in everyone.items():
            rows += _rows(shape, provider, accounts)
    return stamped(rows, "any", f"torch {torch.__version__}, triton {triton.__version__}", "")


def quantities(account: Account, mode: str) -> dict[str, int]:
    """What is said of an account, by name: what is saved of passes that save, and a peak where it is known."""
    figures = {"launches": len(account.launches), "flops": account.flops, "bytes": account.bytes_moved}
    if mode not in ("inference", "backward"):
        figures["saved"] = account.saved
    if account.peak:
        figures["peak"] = account.peak
    return figures


def markdown(rows: Iterable[Row]) -> list[str]:
    """A table per benchmark: every figure, and in brackets how many times the bound it is."""
    tables: dict[str, dict[tuple[str, str, str], dict[str, Row]]] = {}
    for row in rows:
        lines = tables.setdefault(row.benchmark, {})
        lines.setdefault((row.shape, row.mode, row.provider), {})[row.quantity] = row
    text = ["Counted, not measured; in brackets the ratio to the compulsory lower bound."]
    for benchmark, lines in tables.items():
        headings = " | ".join(heading for heading, _ in _HEADINGS.values())
        text += ["", f"### {benchmark}", "", f"| shape | mode | provider | {headings} |", "| --- " * 8 + "|"]
        for (shape, mode, provider), figures in lines.items():
            bounds = lines[shape, mode, "bound"]
            cells = [_cell(figures.get(name), bounds.get(name), name) for name in _HEADINGS]
            text.append(f"| {shape} | {mode} | {provider} | {' | '.join(cells)} |")
    return text


def _cell(row: Row | None, bound: Row | None, name: str) -> str:
    if row is None:
        return "–"
    size = row.value / _HEADINGS[name][1]
    figure = f"{size:.0f}" if name == "launches" else f"{size:.3f}"
    return figure if bound is None or row is bound else f"{figure} ({row.value / bound.value:.2f})"


def _rows(shape: Shape, provider: str, accounts: Accounts) -> list[Row]:
    benchmark, size = named(shape)
    return [
        Row("counted", benchmark, mode, size, "fp16", provider, quantity, float(value), UNITS[quantity])
        for mode, account in accounts.items()
        for quantity, value in quantities(account, mode).items()
    ]


if __name__ == "__main__":
    found = count()
    write(found, FILE)
    print("\n".join(markdown(found)))
