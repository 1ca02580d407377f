"""Pictures of rows: speed-up bars, a roofline, memory bars, cost against tokens and width.

Every picture carries a digest of the rows and of this file, by which it is found to be stale without being drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from benchmarks.report.times import Times
from benchmarks.rows import Row, select
from benchmarks.suites.scaling import AXES

COLOURS = {
    "reference": "#888888", "eager": "#e69f00", "compile": "#56b4e9", "portable": "#009e73", "triton": "#0072b2",
    "bare": "#cccccc", "bound": "#000000",
}  # fmt: skip
_OTHER = ("#cc79a7", "#d55e00", "#b3b300", "#7f5fa0")


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes the pictures that the rows allow; returns their files."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    files = []
    for name, picture in PICTURES.items():
        with plt.rc_context({"svg.hashsalt": "hnkernels", "font.size": 9, "axes.spines.top": False,
                             "axes.spines.right": False}):  # fmt: skip
            figure = picture(rows, plt)
            if figure is None:
                continue
            file = folder / f"{name}.svg"
            figure.savefig(file, bbox_inches="tight", metadata={"Date": None, "Description": digest(rows)})
            plt.close(figure)
        # matplotlib ends lines with a blank here and there
        file.write_text("\n".join(line.rstrip() for line in file.read_text().splitlines()) + "\n", encoding="utf-8")
        files.append(file)
    return files


def stale(rows: Sequence[Row], folder: Path) -> list[str]:
    """The pictures in the folder that were drawn from other rows, or by another version of this file."""
    return [f.name for f in sorted(folder.glob("*.svg")) if digest(rows) not in f.read_text(encoding="utf-8")]


def digest(rows: Sequence[Row]) -> str:
    """Of the rows and of this file."""
    code = Path(__file__).read_bytes()
    return hashlib.sha256(repr([astuple(row) for row in rows]).encode() + code).hexdigest()


def _speed_bars(rows: Sequence[Row], plt: Any) -> Any:
    """For every case, each provider's speed against the first one's."""
    cases = {key: found for key, found in Times(rows).cases.items() if not key[0].startswith("scaling")}
    if not cases:
        return None
    bars = []  # label, provider, speed-up
    for (benchmark, mode, shape), found in cases.items():
        first = next(iter(found.values()))
        others = [p for p in found if p not in (first.provider, "bare")]
        bars += [
            (f"{benchmark}, {mode}, {shape}" if p == others[0] else "", p, first.value / found[p].value) for p in others
        ]
    figure, axes = plt.subplots(figsize=(8, 0.16 * len(bars) + 1))
    places = range(len(bars), 0, -1)
    colours = _colours({p for _, p, _ in bars})
    axes.barh(list(places), [s for *_, s in bars], color=[colours[p] for _, p, _ in bars])
    axes.set_yticks(list(places), [label for label, *_ in bars], fontsize=6)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel(f"times as fast as the first provider ({_first(rows)}); right of 1 is faster")
    axes.legend(handles=[plt.Rectangle((0, 0), 1, 1, color=c, label=p) for p, c in colours.items()], fontsize=7)
    return figure


def _memory_bars(rows: Sequence[Row], plt: Any) -> Any:
    """Peak memory of every provider that has a figure."""
    peaks = select(rows, quantity="peak")
    if not peaks:
        return None
    figure, axes = plt.subplots(figsize=(6, 0.25 * len(peaks) + 1))
    colours = _colours({r.provider for r in peaks})
    places = range(len(peaks), 0, -1)
    axes.barh(list(places), [r.value / 1e9 for r in peaks], color=[colours[r.provider] for r in peaks])
    axes.set_yticks(list(places), [f"{r.benchmark}, {r.shape}: {r.provider}" for r in peaks], fontsize=7)
    axes.set_xlabel(f"peak memory, GB ({_first(rows)})")
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
        for provider, colour in _colours(set(providers)).items():
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
    colours = _colours({p for *_, p in points})
    for provider, colour in colours.items():
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


def _colours(providers: set[str]) -> dict[str, str]:
    """Known providers in the order of their table, then the others."""
    known = [p for p in COLOURS if p in providers]
    others = sorted(providers - set(COLOURS))
    return {p: COLOURS[p] for p in known} | {p: _OTHER[i % len(_OTHER)] for i, p in enumerate(others)}


def _first(rows: Sequence[Row]) -> str:
    return f"{rows[0].machine}, {rows[0].date}"


PICTURES: dict[str, Callable[[Sequence[Row], Any], Any]] = {
    "speed": _speed_bars,
    "memory": _memory_bars,
    "roofline": _roofline,
    **{f"cost-{name}": _axis_lines(name) for name in AXES},
}
