"""Pictures of what was timed on a machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.report.style import bars, colours, legend
from benchmarks.report.times import Times
from benchmarks.rows import Row, select
from benchmarks.suites.scaling import AXES


def _speed_bars(rows: Sequence[Row], plt: Any) -> Any:
    """For every case, each provider's speed against the first one's."""
    cases = {key: found for key, found in Times(rows).cases.items() if not key[0].startswith("scaling")}
    if not cases:
        return None
    groups = {}
    for (benchmark, mode, shape), found in cases.items():
        first, *others = found.values()
        speeds = {row.provider: first.value / row.value for row in others if row.provider != "bare"}
        groups[f"{benchmark}, {mode}, {shape}"] = speeds
    figure, axes = plt.subplots(figsize=(8, 0.16 * sum(map(len, groups.values())) + 1))
    bars(axes, groups)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel(f"times as fast as the first provider ({_first(rows)}); right of 1 is faster")
    legend(axes, groups, plt)
    return figure


def _memory_bars(rows: Sequence[Row], plt: Any) -> Any:
    """Peak memory of every provider that has a figure."""
    groups: dict[str, dict[str, float]] = {}
    for row in select(rows, quantity="peak", kind="measured"):
        groups.setdefault(f"{row.benchmark}, {row.shape}", {})[row.provider] = row.value / 1e9
    if not groups:
        return None
    figure, axes = plt.subplots(figsize=(6, 0.25 * sum(map(len, groups.values())) + 1))
    bars(axes, groups)
    axes.set_xlabel(f"peak memory, GB ({_first(rows)})")
    legend(axes, groups, plt)
    return figure


def _axis_lines(name: str) -> Callable[[Sequence[Row], Any], Any]:
    def picture(rows: Sequence[Row], plt: Any) -> Any:
        """Milliseconds along one axis, and what the operations of the first provider grow like."""
        axis = AXES[name]
        found = {int(key[2]): f for key, f in sorted(Times(rows).cases.items()) if key[0] == f"scaling: {name}"}
        if len(found) < 2:
            return None
        values = sorted(found)
        figure, axes = plt.subplots(figsize=(5, 3.4))
        providers = list(found[values[0]])
        for provider, colour in colours(set(providers)).items():
            axes.plot(values, [found[n][provider].value * 1e3 for n in values], "o-", color=colour, label=provider)
        work, last = axis.work["reference"], found[values[-1]][providers[0]].value * 1e3
        axes.plot(values, [last * work(n) / work(values[-1]) for n in values], ":", color="black",
                  label=f"operations of {providers[0]}")  # fmt: skip
        axes.set_xscale("log", base=2), axes.set_yscale("log")
        axes.set_xlabel(axis.what), axes.set_ylabel("ms")
        axes.set_title(_first(rows), fontsize=8)
        axes.legend(fontsize=7)
        return figure

    return picture


def _roofline(rows: Sequence[Row], plt: Any) -> Any:
    """The least work that every case needs, done per second, under the ceilings of the machine."""
    ceilings = {row.mode: row.value for row in select(rows, benchmark="ceiling")}
    points = _work(rows)
    if not ceilings or not points:
        return None
    figure, axes = plt.subplots(figsize=(6, 4))
    low, high = 0.5 * min(x for x, *_ in points), 2 * max(x for x, *_ in points)
    ridge = ceilings["gemm"] / ceilings["copy"]
    edges = sorted({low, min(max(ridge, low), high), high})
    axes.plot(edges, [min(ceilings["gemm"], x * ceilings["copy"]) / 1e9 for x in edges], color="black",
              label="measured: large GEMM, copying")  # fmt: skip
    for provider, colour in colours(p for *_, p in points).items():
        mine = [(x, y / 1e9) for x, y, p in points if p == provider]
        axes.scatter(*zip(*mine, strict=True), color=colour, s=14, label=provider)
    axes.set_xscale("log"), axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte of the least work (counted)")
    axes.set_ylabel("GFLOP/s of the least work")
    axes.set_title(_first(rows), fontsize=8)
    axes.legend(fontsize=7)
    return figure


def _work(rows: Sequence[Row]) -> list[tuple[float, float, str]]:
    """FLOP per byte, FLOP/s and provider of every timed projection, by the compulsory work of its case."""
    least: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in select(rows, provider="bound", kind="counted"):
        least.setdefault((row.benchmark, row.mode, row.shape), {})[row.quantity] = row.value
    found = []
    for key, timed in Times(rows).cases.items():
        if key in least:
            work = least[key]
            intensity = work["flops"] / work["bytes"]
            found += [(intensity, work["flops"] / r.value, p) for p, r in timed.items() if p != "bare"]
    return found


def _first(rows: Sequence[Row]) -> str:
    return f"{rows[0].machine}, {rows[0].date}"


PICTURES: dict[str, Callable[[Sequence[Row], Any], Any]] = {
    "speed": _speed_bars,
    "memory": _memory_bars,
    "roofline": _roofline,
    **{f"cost-{name}": _axis_lines(name) for name in AXES},
}
