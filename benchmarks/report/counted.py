"""What is the same on every machine, as tables: counted on the meta device, modelled, read from compiled code."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.accounting import figures
from benchmarks.limits import stricter, tables
from benchmarks.limits.gpus import GPUS
from benchmarks.rows import Row, select

SHAPE = "320 x 8192"
"""K and V of one attention layer of Stable Diffusion 1.x, two pictures of 512 pixels at once."""

NETWORKS = ("relu", "silu", "relu + LayerNorm", "silu + LayerNorm")

SUMMARISED = (
    ("projection, relu", "320 x 4096"), ("projection, silu + LayerNorm", "320 x 4096"),
    ("projection, silu + LayerNorm", "1280 x 256"), ("projection, relu", "768 x 77"),
    ("cross attention, relu", "16 layers, 768 x 77"), ("lowrank", "320 x 1024"),
)  # fmt: skip
"""Benchmark and shape of the cases that docs/benchmarks.md shows."""


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
    for network in NETWORKS:
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
    return figures.markdown(select(rows, kind="counted"))


def limits(rows: Sequence[Row]) -> list[str]:
    """Predicted times on four GPUs, by benchmark, shape, mode and provider, and where their figures come from."""
    lines = tables.times(select(rows, kind="modelled"))
    lines += ["", "### Sources", "", "| GPU | figure | source |", "| --- | --- | --- |"]
    for gpu in GPUS.values():
        lines += [f"| {gpu.name} | {figure.replace('_', ' ')} | {source} |" for figure, source in gpu.sources.items()]
    return lines


def summary(rows: Sequence[Row]) -> list[str]:
    """How many times as fast as the web UIs' way the model says the others are, and how near they come to the floor."""
    times: dict[tuple[str, str, str, str], dict[str, float]] = {}
    strict: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for into, quantity in ((times, "time"), (strict, stricter.QUANTITY)):
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
