"""Tables of what was timed on a machine: the targets that the library is held to, then speed, memory, errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from benchmarks.cases import PROVIDERS
from benchmarks.layers import AXES
from benchmarks.rows import Line, Row, select
from benchmarks.rows import table as as_table
from benchmarks.shapes import FIRST_TEXTS, SAMPLES, SD15, SD15_TEXT, SDXL_TEXT, sd15

CaseKey = tuple[str, str, str]
"""Benchmark, mode, shape."""


class Times:
    """Median seconds of every case and provider, those of Triton's interpreter left out."""

    def __init__(self, rows: Iterable[Row]):
        self.cases: dict[CaseKey, dict[str, Row]] = {}
        for row in rows:
            if row.quantity == "time" and row.kind == "measured" and row.target != "interpreter":
                self.cases.setdefault((row.benchmark, row.mode, row.shape), {})[row.provider] = row

    def seconds(self, benchmark: str, mode: str, shape: str, provider: str) -> float:
        """Raises ``KeyError`` where it was not timed."""
        return self.cases[benchmark, mode, shape][provider].value

    def ours(self, benchmark: str, mode: str, shape: str) -> str:
        """hnkernels' provider: the kernels where they ran, else plain PyTorch."""
        return "triton" if "triton" in self.cases[benchmark, mode, shape] else "portable"


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent p of ``y = c·xᵖ`` that fits best, by least squares of the logarithms; nan for fewer than two."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len(logs) < 2:
        return math.nan
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


Figure = Callable[[Times, Sequence[Row]], float]
"""From the timings and the rows to a figure. ``KeyError`` where they lack something."""


@dataclass(frozen=True)
class Claim:
    """A target.

    Attributes:
        text: what was done.
        against: what it is compared with.
        unit: of the figure: ``"x"`` is a ratio of medians, above 1 where hnkernels is faster.
        at_least, at_most: the target; neither where there is only a figure.
        figure: how it is found.
    """

    text: str
    against: str
    unit: str
    figure: Figure
    at_least: float | None = None
    at_most: float | None = None


WEB_UI = "the web UIs' way, eager"
_STEP = str(sd15(256, rows=1))


def table(rows: Sequence[Row]) -> list[str]:
    """The claims for which the rows have figures."""
    times, lines = Times(rows), []
    for claim in CLAIMS:
        with suppress(KeyError):
            figure = claim.figure(times, rows)
            lines.append(Line(claim.text, claim.against, figure, claim.unit, claim.at_most, claim.at_least, digits=2))
    return as_table(lines)


def _speedup(benchmark: str, mode: str, shape: str, baseline: str = "reference") -> Figure:
    def figure(times: Times, rows: Sequence[Row]) -> float:
        ours = times.ours(benchmark, mode, shape)
        return times.seconds(benchmark, mode, shape, baseline) / times.seconds(benchmark, mode, shape, ours)

    return figure


def _share(benchmark: str, mode: str, shape: str, baseline: str) -> Figure:
    """What ours adds to the bare model's time, as a share of what the baseline adds."""

    def figure(times: Times, rows: Sequence[Row]) -> float:
        bare = times.seconds(benchmark, mode, shape, "bare")
        ours = times.seconds(benchmark, mode, shape, times.ours(benchmark, mode, shape))
        return (ours - bare) / (times.seconds(benchmark, mode, shape, baseline) - bare)

    return figure


def _cost(benchmark: str, mode: str, shape: str, provider: str | None = None) -> Figure:
    """A provider's time as a multiple of the bare model's."""

    def figure(times: Times, rows: Sequence[Row]) -> float:
        who = provider or times.ours(benchmark, mode, shape)
        return times.seconds(benchmark, mode, shape, who) / times.seconds(benchmark, mode, shape, "bare")

    return figure


def _checkpointed(times: Times, rows: Sequence[Row]) -> float:
    step = ("training step", "training step", _STEP)
    return times.seconds(*step, "reference checkpointing") / times.seconds(*step, "checkpointing")


def _memory(provider: str, against: str = "reference") -> Figure:
    """Gigabytes less than the peak of another provider."""

    def figure(times: Times, rows: Sequence[Row]) -> float:
        peaks = {r.provider: r.value for r in select(rows, benchmark="training step", shape=_STEP, quantity="peak")}
        return (peaks[against] - peaks[provider]) / 1e9

    return figure


def _claims() -> list[Claim]:
    claims = [
        Claim("16 cross-attention layers, forward", WEB_UI, "x",
              _speedup("cross-attention", "new prompt", str(SD15_TEXT)), at_least=6),
        Claim("the same from the second denoising step on", WEB_UI, "x",
              _speedup("cross-attention, kept", "same prompt", str(SD15_TEXT)), at_least=50),
        Claim("16 cross-attention layers, forward + backward", WEB_UI, "x",
              _speedup("cross-attention", "forward + backward", str(SD15_TEXT)), at_least=6),
        Claim("70 cross-attention layers of SDXL, forward", WEB_UI, "x",
              _speedup("cross-attention, SDXL", "new prompt", str(SDXL_TEXT)), at_least=10),
    ]  # fmt: skip
    for shape in (str(SD15[0]), str(SD15[2])):
        for mode in ("inference", "forward + backward"):
            claims.append(
                Claim(f"self-attention {shape}, {mode}", WEB_UI, "x", _speedup("projection", mode, shape), at_least=1)
            )
    for shape in map(str, SAMPLES):
        text = f"low-rank weights per sample, {shape}: what they add, forward + backward"
        what = ("lowrank", "forward + backward", shape)
        claims += [
            Claim(text, "two einsums", "x its cost", _share(*what, "einsum"), at_most=0.7),
            Claim(text, "factors copied per token", "x its cost", _share(*what, "token"), at_most=0.2),
            Claim(text, "a loop over the samples", "x its cost", _share(*what, "loop")),
        ]
    for shape in map(str, (*SD15, FIRST_TEXTS[0])):
        what = ("first linears", "inference", shape)
        claims.append(
            Claim(
                f"both first linears as one GEMM, {shape}", "as two", "x",
                lambda times, rows, what=what: times.seconds(*what, "two") / times.seconds(*what, "one"),
            )
        )  # fmt: skip
    small = str(sd15(128))
    steps, call = ("20 steps", "new prompt", small), ("UNet call, affine", "same prompt", small)
    claims += [
        Claim("20 steps, what a network costs", "what it costs the web UIs' way", "x its cost",
              _share(*steps, "reference"), at_most=0.7),
        Claim("20 steps, network for the text alone", "the UNet without one", "x its time",
              _cost(*steps, "text alone"), at_most=1.01),
        Claim("UNet call with an affine network, fused", "the UNet without one", "x its time",
              _cost(*call), at_most=1.02),
    ]  # fmt: skip
    step, against = "training step of the UNet, batch 1", "the web UIs' way, base not frozen"
    claims += [
        Claim(step, against, "x", _speedup("training step", "training step", _STEP), at_least=1.5),
        Claim(f"{step}: peak memory saved", against, "GB", _memory("portable"), at_least=3.4),
        Claim(f"{step}, gradient checkpointing", against, "x", _checkpointed, at_least=1.5),
        Claim(f"{step}, gradient checkpointing: peak memory saved", against, "GB",
              _memory("checkpointing", "reference checkpointing"), at_least=3.4),
    ]  # fmt: skip
    return claims


CLAIMS = _claims()


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
