"""What was timed on a machine, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.registry import PROVIDERS
from benchmarks.report.times import Times, slope
from benchmarks.rows import Row, select
from benchmarks.suites.scaling import AXES


def heading(rows: Sequence[Row]) -> str:
    """Where, with what, when, and how it is known."""
    first = rows[0]
    return (
        f"Measured on {first.date}: {first.machine}; {first.versions}. Ratios of medians, providers interleaved in one "
        "process."
    )


def speed(rows: Sequence[Row]) -> list[str]:
    """How many times as fast as the first provider every other one is; a table for each set of providers."""
    tables: dict[tuple[str, ...], list[str]] = {}
    for (benchmark, mode, shape), found in Times(rows).cases.items():
        if benchmark.startswith("scaling"):
            continue
        providers = tuple(found)
        first, *others = providers
        cells = [f"{found[first].value / found[name].value:.2f}" for name in others]
        head = [
            f"| what | dtype | rounds | {' | '.join(f'{name} / {first}' for name in others)} |",
            "| --- | --- | --- | " + "--- | " * len(others),
        ]
        lines = tables.setdefault(providers, [line.rstrip() for line in head])
        row = found[first]
        lines.append(f"| {benchmark}, {mode}, {shape} | {row.dtype} | {row.samples} | {' | '.join(cells)} |")
    lines = [f"Speed against the first provider: above 1 is faster. {_who(rows)}"]
    for table in tables.values():
        lines += ["", *table]
    return lines


def errors(rows: Sequence[Row]) -> list[str]:
    """What every provider of the operations is wrong by, against float64; the kernels as run in the interpreter."""
    lines = [
        "Largest relative error (Frobenius) of a result or gradient against float64; whole models against the first "
        "provider. Where none is given, the provider was not run.",
        "",
        "| what | where | dtype | provider | error |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in select(rows, quantity="error"):
        if not row.benchmark.startswith("scaling"):
            where = row.target or "device"
            lines.append(
                f"| {row.benchmark}, {row.mode}, {row.shape} | {where} | {row.dtype} | {row.provider} "
                f"| {row.value:.1e} |"
            )
    return lines


def memory(rows: Sequence[Row]) -> list[str]:
    """Peak memory of every provider that has a figure."""
    peaks = select(rows, quantity="peak")
    if not peaks:
        return []
    lines = ["Peak memory.", "", "| what | provider | GB |", "| --- | --- | --- |"]
    lines += [f"| {r.benchmark}, {r.mode}, {r.shape} | {r.provider} | {r.value / 1e9:.2f} |" for r in peaks]
    return lines


def scaling(rows: Sequence[Row]) -> list[str]:
    """The exponents that the cost grows with, beside those that the arithmetic grows with."""
    times = Times(rows)
    lines = [
        "Time = c · (what is varied)^exponent, fitted to the medians; the same fitted to the operations that it takes.",
        "",
        "| varied | from | to | provider | exponent of time | of operations |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, axis in AXES.items():
        cases = {int(key[2]): found for key, found in times.cases.items() if key[0] == f"scaling: {name}"}
        for who, provider in (("reference", "reference"), ("ours", "portable"), ("ours", "triton")):
            points = [(n, found[provider].value) for n, found in cases.items() if provider in found]
            if len(points) > 1:
                expected = slope([(n, axis.work[who](n)) for n, _ in points])
                ends = f"{min(cases)} | {max(cases)}"
                lines.append(f"| {axis.what} | {ends} | {provider} | {slope(points):.2f} | {expected:.2f} |")
    return lines


def ceilings(rows: Sequence[Row]) -> list[str]:
    """What the machine can do at best."""
    found = {row.mode: row.value for row in select(rows, benchmark="ceiling")}
    if not found:
        return []
    return [
        f"Ceilings of the machine: {found['copy'] / 1e9:.1f} GB/s copying, {found['gemm'] / 1e12:.3g} TFLOP/s in a "
        "large GEMM."
    ]


def _who(rows: Sequence[Row]) -> str:
    present = {row.provider for row in rows}
    return "; ".join(f"`{name}`: {text}" for name, text in PROVIDERS.items() if name in present) + "."
