"""Pictures of what is counted and modelled, which are the same on any machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.limits.gpus import GPUS
from benchmarks.report.counted import NETWORKS, SHAPE, SUMMARISED
from benchmarks.report.style import bars, colours, legend
from benchmarks.rows import Row, select

STEP = "forward + backward"
MODES = ("inference", STEP)


def _memory_bars(rows: Sequence[Row], plt: Any) -> Any:
    """What a training step keeps for the backward pass, and has at once, at one shape."""
    found = [r for n in NETWORKS for r in select(rows, kind="counted", benchmark=f"projection, {n}", mode=STEP)]
    found = [row for row in found if row.shape == SHAPE and row.quantity in ("saved", "peak")]
    if not found:
        return None
    figure, both = plt.subplots(1, 2, figsize=(8, 4), sharey=True)
    for axes, quantity, text in zip(
        both, ("saved", "peak"), ("kept for the backward pass", "most at once"), strict=True
    ):  # fmt: skip
        groups: dict[str, dict[str, float]] = {}
        for row in select(found, quantity=quantity):
            if row.provider != "compile":  # of which the peak is not known
                groups.setdefault(row.benchmark.removeprefix("projection, "), {})[row.provider] = row.value / 1e6
        bars(axes, groups)
        axes.set_xlabel(f"MB, {text}; counted")
    legend(both[1], groups, plt)
    both[0].set_title(f"K and V, {SHAPE}, fp16, one training step", fontsize=8)
    return figure


def _speed_bars(rows: Sequence[Row], plt: Any) -> Any:
    """How many times as fast as the usual way the model says the others are."""
    times = select(rows, kind="modelled", quantity="time")
    if not times:
        return None
    figure, grid = plt.subplots(2, 2, figsize=(10, 9), sharex=True, sharey=True)
    for axes, gpu in zip(grid.flat, GPUS, strict=True):
        groups = {}
        for benchmark, shape in SUMMARISED:
            for mode in MODES:
                here = select(times, target=gpu, benchmark=benchmark, shape=shape, mode=mode)
                speeds = {row.provider: here[0].value / row.value for row in here[1:]}
                groups[f"{benchmark}, {shape}, {mode}"] = speeds
        bars(axes, groups)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_title(gpu, fontsize=8)
    for axes in grid[1]:
        axes.set_xlabel("times as fast as the first provider; modelled, not measured")
    legend(grid[0, 1], groups, plt)
    return figure


def _roofline(rows: Sequence[Row], plt: Any) -> Any:
    """What every provider computes per byte that it moves, and at which rate the model says that it does."""
    work: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for row in select(rows, kind="counted"):
        if row.mode in MODES and row.provider in ("reference", "eager", "triton", "bound"):
            work.setdefault((row.benchmark, row.mode, row.shape, row.provider), {})[row.quantity] = row.value
    if not work or not select(rows, kind="modelled"):
        return None
    figure, grid = plt.subplots(2, 2, figsize=(10, 7), sharex=True, sharey=True)
    for axes, gpu in zip(grid.flat, GPUS.values(), strict=True):
        points: dict[str, list[tuple[float, float]]] = {}
        for row in select(rows, kind="modelled", quantity="time", target=gpu.name):
            done = work.get((row.benchmark, row.mode, row.shape, row.provider))
            if done is not None:
                point = done["flops"] / done["bytes"], done["flops"] / row.value / 1e12
                points.setdefault(row.provider, []).append(point)
        intensities = [x for found in points.values() for x, _ in found]
        edges = [min(intensities), gpu.matrix_rate / gpu.bandwidth, max(intensities)]
        axes.plot(edges, [min(gpu.matrix_rate, x * gpu.bandwidth) / 1e12 for x in edges], color="black", linewidth=0.8)
        for provider, shade in colours(points).items():
            axes.scatter(*zip(*points[provider], strict=True), color=shade, s=12, label=provider)
        axes.set_xscale("log"), axes.set_yscale("log")
        axes.set_title(gpu.name, fontsize=8)
    for axes in grid[1]:
        axes.set_xlabel("FLOP per byte moved; counted")
    for axes in grid[:, 0]:
        axes.set_ylabel("TFLOP/s; modelled, not measured")
    grid[0, 0].legend(fontsize=7)
    return figure


PICTURES: dict[str, Callable[[Sequence[Row], Any], Any]] = {
    "memory": _memory_bars,
    "speed": _speed_bars,
    "roofline": _roofline,
}
