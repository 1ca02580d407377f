"""The model and the readings as rows and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.accounting import inductor
from benchmarks.accounting.cases import Case, cases
from benchmarks.limits import choices, roofline, static, stricter
from benchmarks.limits.gpus import GPUS
from benchmarks.rows import Row

MODES = ("inference", "forward + backward")

SHAPES = ("320 x 4096", "640 x 1024", "1280 x 256", "640 x 4096", "1280 x 1024", "768 x 77")
"""The single layers that are modelled; beside them go all cross-attention and low-rank cases."""

NETWORKS = ("projection, relu", "projection, relu + LayerNorm", "projection, silu + LayerNorm", "projection, affine")


READ = ("projection, relu", "projection, relu + LayerNorm", "cross attention, relu", "lowrank")
"""The others' machine code differs in its epilogues."""


def chosen() -> list[Case]:
    """The cases that are modelled."""
    return [
        case
        for case in cases()
        if not case.benchmark.startswith("projection") or (case.benchmark in NETWORKS and case.shape in SHAPES)
    ]


def model(case: Case, compiled: bool = True) -> list[Row]:
    """Predicted times on every GPU, of all providers and of the bound; ``torch.compile``'s only if wanted."""
    everyone = {provider: case.accounts(provider) for provider in case.providers if provider != "triton"}
    if compiled and inductor.countable(case):
        everyone["compile"] = inductor.accounts(case)
    rows: list[Row] = []
    for gpu in GPUS.values():
        ours = case.accounts("triton", gpu.target)
        modes = [mode for mode in MODES if mode in ours]
        accounts = {**everyone, "triton": ours, "bound": case.bounds()}
        wanted = {who: {m: done[m] for m in modes} for who, done in accounts.items()}
        rows += roofline.rows(case, wanted, gpu)
        rows += stricter.rows(case, {who: of for who, of in wanted.items() if who != "bound"}, gpu)
    return rows


def times(rows: Iterable[Row]) -> list[str]:
    """A table per GPU: predicted times by both models, and what share of its time the floor is, by provider."""
    found: dict[str, dict[tuple[str, str, str, str], dict[str, float]]] = {name: {} for name in GPUS}
    for row in rows:
        if row.benchmark == choices.BENCHMARK:
            continue
        key = (row.benchmark, row.shape, row.mode, row.provider)
        found[row.target].setdefault(key, {})[row.quantity] = row.value
    lines: list[str] = []
    for gpu in GPUS.values():
        lines += [
            "",
            f"### {gpu.name}: predicted times, modelled, not measured",
            "",
            f"Matrix rate {gpu.matrix_rate / 1e12:.4g} TFLOP/s, bandwidth {gpu.bandwidth / 1e12:.4g} TB/s, "
            f"{gpu.launch_cost * 1e6:.1f} µs a launch.",
            "",
            *(f"- {name.replace('_', ' ')}: {source}" for name, source in gpu.sources.items()),
            "",
            "| benchmark | shape | mode | provider | µs | in a graph, µs | share of the floor | stricter model, µs |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for (*case, provider), figures in found[gpu.name].items():
            time, graph = figures["time"], figures.get("time in a graph")
            floor = found[gpu.name][case[0], case[1], case[2], "bound"]["time"]
            in_a_graph = "–" if graph is None else f"{graph * 1e6:.1f}"
            what = " | ".join((*case, provider))
            strict = f"{figures[stricter.QUANTITY] * 1e6:.1f}" if stricter.QUANTITY in figures else "–"
            lines.append(f"| {what} | {time * 1e6:.1f} | {in_a_graph} | {floor / time:.0%} | {strict} |")
    return lines


def read(case: Case, mode: str) -> tuple[list[Row], list[str]]:
    """What the machine code of a case's launches says on every GPU: as rows, and as lines of a table."""
    rows: list[Row] = []
    lines: list[str] = []
    for gpu in GPUS.values():
        found = static.readings(case, mode, gpu)
        rows += static.rows(case, mode, found, gpu)
        lines += [f"| {gpu.name} | {case.benchmark}, {case.shape}, {mode} | {_line(reading)} |" for reading in found]
    return rows, lines


def read_heading() -> Sequence[str]:
    """What stands above the lines of ``read``."""
    return (
        "",
        "### Machine code of the launches, compiled, not measured",
        "",
        "| GPU | case | kernel | form | tiles | programs | matrix share | occupancy | KiB in flight | covers, ns |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    )


def _line(reading: static.Reading) -> str:
    what = f"{reading.kernel} | {reading.variant} | {reading.tiles} | {reading.programs}"
    if not reading.found:
        return f"{what} | not compiled | | | "
    matrix = "–" if reading.matrix_share is None else f"{reading.matrix_share:.0%}"
    if reading.in_flight is None or reading.covered is None:
        return f"{what} | {matrix} | {reading.occupancy:.0%} | – | –"
    flight = f"{reading.in_flight / 1024:.0f} | {reading.covered * 1e9:.0f}"
    return f"{what} | {matrix} | {reading.occupancy:.0%} | {flight}"
