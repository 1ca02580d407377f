"""Pictures of what was timed on a machine, and of what is counted and modelled, which is the same on any machine.

Each has a digest of its rows and of the code that draws it. By that it is found to be stale without being drawn,
whatever the version of matplotlib.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.accounting import OF_NETWORKS, SHAPE, SUMMARISED
from benchmarks.limits import MODES
from benchmarks.roofline import GPUS
from benchmarks.rows import Row, select
from benchmarks.tables import AXES, Times

Picture = Callable[[Sequence[Row], Any], Any]
"""From rows and matplotlib to a figure, or to ``None`` where the rows have nothing of it."""

_CODE = (__file__, tables.__file__)

COLOURS = {
    "reference": "#888888", "eager": "#e69f00", "compile": "#56b4e9", "portable": "#009e73", "triton": "#0072b2",
    "bare": "#cccccc", "bound": "#000000",
}  # fmt: skip
_OTHERS = ("#cc79a7", "#d55e00", "#b3b300", "#7f5fa0")

Groups = Mapping[str, Mapping[str, float]]
"""Label → provider → length of the bar."""


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes the pictures that the rows allow; returns their files."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    files = []
    look = {"svg.hashsalt": "hnkernels", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    measured = any(row.kind == "measured" for row in rows)
    for name, picture in (MEASURED if measured else COUNTED).items():
        with plt.rc_context(look):
            figure = picture(rows, plt)
            if figure is None:
                continue
            file = folder / f"{name}.svg"
            figure.savefig(file, bbox_inches="tight", metadata={"Date": None, "Description": digest(rows)})
            plt.close(figure)
        # matplotlib ends some lines with a blank
        file.write_text("\n".join(line.rstrip() for line in file.read_text().splitlines()) + "\n", encoding="utf-8")
        files.append(file)
    return files


def stale(rows: Sequence[Row], folder: Path) -> list[str]:
    """The pictures in the folder that were drawn from other rows, or by other code."""
    return [f.name for f in sorted(folder.glob("*.svg")) if digest(rows) not in f.read_text(encoding="utf-8")]


def digest(rows: Sequence[Row]) -> str:
    """Of the rows, of what is chosen of them, and of the code."""
    code = b"".join(Path(file).read_bytes() for file in _CODE)
    what = ([astuple(row) for row in rows], SHAPE, OF_NETWORKS, SUMMARISED)
    return hashlib.sha256(repr(what).encode() + code).hexdigest()


def colours(providers: Iterable[str]) -> dict[str, str]:
    """Provider → colour: known ones in the order of their table, then the others."""
    providers = set(providers)
    known = [p for p in COLOURS if p in providers]
    others = sorted(providers - set(COLOURS))
    return {p: COLOURS[p] for p in known} | {p: _OTHERS[i % len(_OTHERS)] for i, p in enumerate(others)}


def bars(axes: Any, groups: Groups) -> None:
    """Horizontal bars from top to bottom, the label at the first of each group."""
    flat = [(label, p, length) for label, found in groups.items() for p, length in found.items()]
    labels = [label if p == next(iter(groups[label])) else "" for label, p, _ in flat]
    shades = colours(p for _, p, _ in flat)
    places = list(range(len(flat), 0, -1))
    axes.barh(places, [length for *_, length in flat], color=[shades[p] for _, p, _ in flat])
    axes.set_yticks(places, labels, fontsize=6)
    axes.margins(y=0.01)


def legend(axes: Any, groups: Groups, plt: Any) -> None:
    """Which colour is whose."""
    shades = colours(p for found in groups.values() for p in found)
    axes.legend(handles=[plt.Rectangle((0, 0), 1, 1, color=c, label=p) for p, c in shades.items()], fontsize=7)


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


def _axis_lines(name: str) -> Picture:
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


def _counted_memory(rows: Sequence[Row], plt: Any) -> Any:
    """What a training step keeps for the backward pass, and has at once, at one shape."""
    found = [
        r
        for n in OF_NETWORKS
        for r in select(rows, kind="counted", benchmark=f"projection, {n}", mode="forward + backward")
    ]
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


def _modelled_speed(rows: Sequence[Row], plt: Any) -> Any:
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


def _modelled_roofline(rows: Sequence[Row], plt: Any) -> Any:
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


MEASURED: dict[str, Picture] = {
    "speed": _speed_bars,
    "memory": _memory_bars,
    "roofline": _roofline,
    **{f"cost-{name}": _axis_lines(name) for name in AXES},
}
COUNTED: dict[str, Picture] = {
    "memory": _counted_memory,
    "speed": _modelled_speed,
    "roofline": _modelled_roofline,
}
