"""Accounts as rows, and the rows as tables with their ratios to the bound."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import triton

from benchmarks.accounting import inductor
from benchmarks.accounting.cases import Accounts, Case, cases
from benchmarks.rows import Row, stamped
from hnkernels.accounting.eager import Account

UNITS = {"launches": "1", "flops": "FLOP", "bytes": "B", "saved": "B", "peak": "B"}

_HEADINGS = {"launches": ("launches", 1), "flops": ("GFLOP", 1e9), "bytes": ("MB moved", 1e6),
             "saved": ("MB saved", 1e6), "peak": ("MB at once", 1e6)}  # fmt: skip


def count(chosen: Sequence[Case] | None = None, compiled: bool = True) -> list[Row]:
    """The figures of all cases, or of some, by all providers and of the bound; ``torch.compile``'s only if wanted."""
    rows: list[Row] = []
    for case in cases() if chosen is None else chosen:
        everyone = {provider: case.accounts(provider) for provider in case.providers}
        if compiled and inductor.countable(case):
            everyone["compile"] = inductor.accounts(case)
        counted = {mode for accounts in everyone.values() for mode in accounts}
        everyone["bound"] = {mode: account for mode, account in case.bounds().items() if mode in counted}
        for provider, accounts in everyone.items():
            rows += _rows(case, provider, accounts)
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


def _rows(case: Case, provider: str, accounts: Accounts) -> list[Row]:
    return [
        Row("counted", case.benchmark, mode, case.shape, "fp16", provider, quantity, float(value), UNITS[quantity])
        for mode, account in accounts.items()
        for quantity, value in quantities(account, mode).items()
    ]
