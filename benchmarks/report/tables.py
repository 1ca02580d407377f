"""Tables: what was timed on a machine; and what is the same on all: counted, modelled, read from compiled code."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import accounting, limits
from benchmarks.accounting import named
from benchmarks.cases import PROVIDERS
from benchmarks.layers import AXES
from benchmarks.report.claims import Times, slope
from benchmarks.roofline import GPUS, STRICTER
from benchmarks.rows import Row, select
from benchmarks.shapes import PAIR, SAMPLES, SD15, SD15_TEXT, TEXTS, Network

SHAPE = named(PAIR)[1]
"""K and V of one attention layer of Stable Diffusion 1.x, two pictures of 512 pixels at once."""

OF_NETWORKS = ("relu", "silu", "relu + LayerNorm", "silu + LayerNorm")

_NORMED = Network("silu", True)
SUMMARISED = tuple(map(named, (SD15[0], SD15[0].of(_NORMED), SD15[2].of(_NORMED), TEXTS[0], SD15_TEXT, SAMPLES[0])))
"""Benchmark and shape of what docs/benchmarks.md shows."""


def measured_heading(rows: Sequence[Row]) -> str:
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


def counted_heading(rows: Sequence[Row]) -> str:
    """With what, and how it is known."""
    return f"Counted, compiled and modelled, not measured: the same on any machine; {rows[0].versions}."


def launches(rows: Sequence[Row]) -> list[str]:
    """The kernels against the web UIs' way in eager PyTorch, at one shape."""
    lines = [
        "| network `[1, 2, 1]` | launches: inference | forward | backward | bytes moved by a training step "
        "| bytes saved for backward | most bytes at once |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for network in OF_NETWORKS:
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
        lines.append(f"| {network} | {' | '.join([*counts, *ratios])} |")
    return lines


def account(rows: Sequence[Row]) -> list[str]:
    """Every provider at every shape, with the ratio to the bound."""
    return accounting.markdown(select(rows, kind="counted"))


def predicted_times(rows: Sequence[Row]) -> list[str]:
    """Predicted times on four GPUs, by benchmark, shape, mode and provider, and where their figures come from."""
    lines = limits.times(select(rows, kind="modelled"))
    lines += ["", "### Sources", "", "| GPU | figure | source |", "| --- | --- | --- |"]
    for gpu in GPUS.values():
        lines += [f"| {gpu.name} | {figure.replace('_', ' ')} | {source} |" for figure, source in gpu.sources.items()]
    return lines


def summary(rows: Sequence[Row]) -> list[str]:
    """How many times as fast as the web UIs' way the model says the others are, and how near they come to the floor."""
    times: dict[tuple[str, str, str, str], dict[str, float]] = {}
    strict: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for into, quantity in ((times, "time"), (strict, STRICTER)):
        for row in select(rows, kind="modelled", quantity=quantity):
            into.setdefault((row.benchmark, row.shape, row.mode, row.target), {})[row.provider] = row.value
    lines = [
        "Modelled, not measured: so many times as fast as the reference (low-rank weights: as two einsums), by the "
        "roofline; in brackets the share of its time that nobody could do without. Last, for the kernels, by the "
        "stricter model, which knows of tiles, waves and waiting and is in the vendors' favour.",
        "",
        f"| K and V, fp16 | provider | {' | '.join(GPUS)} |",
        "| --- | --- | " + "--- | " * len(GPUS),
    ]
    lines[-1] = lines[-1].rstrip()
    for benchmark, shape in SUMMARISED:
        for mode in ("inference", "forward + backward"):
            found = [times.get((benchmark, shape, mode, gpu), {}) for gpu in GPUS]
            for provider in ("eager", "compile", "triton"):
                if all(provider in t for t in found):
                    # the first one is the way it is usually done
                    ratios = [(next(iter(t.values())) / t[provider], t["bound"] / t[provider]) for t in found]
                    cells = [f"{faster:.2f} ({share:.0%})" for faster, share in ratios]
                    lines.append(f"| {benchmark}, {shape}, {mode} | {provider} | {' | '.join(cells)} |")
            by_gpu = [strict.get((benchmark, shape, mode, gpu), {}) for gpu in GPUS]
            if all("triton" in t for t in by_gpu):
                cells = [f"{next(iter(t.values())) / t['triton']:.2f}" for t in by_gpu]
                lines.append(f"| {benchmark}, {shape}, {mode} | triton, stricter | {' | '.join(cells)} |")
    return lines


def code(rows: Sequence[Row]) -> list[str]:
    """What the compiled kernels look like, launch by launch."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for row in select(rows, kind="compiled"):
        launch, figure = row.quantity.split(": ")
        found.setdefault((row.target, row.benchmark, row.shape, row.mode, launch), {})[figure] = row.value
    lines = [
        "Compiled, not measured: share of matrix instructions in the main loop, of the warps that fit at once, bytes "
        "that loads keep in flight on one multiprocessor, and the latency that these cover at the full bandwidth. "
        "Launches whose form is not in `compiled.csv` are left out.",
        "",
        "| GPU | benchmark | shape | mode | launch | matrix % | occupancy % | KiB in flight | covers ns |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    scales = {"matrix share": 100.0, "occupancy": 100.0, "bytes in flight": 1 / 1024, "latency covered": 1e9}
    for what, read in found.items():
        cells = [f"{read[name] * scale:.0f}" if name in read else "–" for name, scale in scales.items()]
        lines.append(f"| {' | '.join([*what, *cells])} |")
    return lines
