"""The GPUs by their data sheets, and two models that make the time they would take at best of an account.

Modelled, not measured. Every figure of a GPU is the best that its maker claims: no kernel reaches the matrix rate or
the bandwidth of a data sheet, and a launch costs more where the CPU does not keep ahead. A predicted time is therefore
a lower estimate.

The roofline (``seconds``): a launch takes as long as its products at the matrix rate or its bytes at the memory's
bandwidth, whichever is longer (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009), and the cost of a launch;
launches follow one another:

    time = Σ max(FLOPs / matrix rate, bytes / bandwidth) + launch cost

The floor is the same of the compulsory bound, which is one launch. As nobody's account is below the bound, and a
maximum of sums is at most the sum of maxima, no prediction is below the floor. Left out: what a launch finds in the L2
cache from the one before; the time of a device that is not full; what pointwise arithmetic takes; and in eager PyTorch
the CPU's work for every operation, which alone is several microseconds.

The stricter model (``stricter_seconds``): kernels cut up into programs, waves of them, and what a step waits for. A
launch takes its own cost, the first load from memory, and then whichever is longer: its bytes at the memory's
bandwidth, or what its processors do. That is, for ours with tiles, ``hnkernels.triton.cost``, with as many programs on
a processor as the compiled kernel leaves room for (``fitting``); for our row kernels, the loads that follow one another
in a program, in as many waves as there are; for products of the vendor's library, the best of its tiles and splits by
the same formulas. Eager's pointwise operations and reductions run at the memory's bandwidth, whatever their shape.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from benchmarks.accounting import SUMMARISED, named
from benchmarks.counting import Accounts
from benchmarks.rows import RESULTS, Row, select
from benchmarks.shapes import Shape
from hnkernels.accounting.eager import Account
from hnkernels.triton.cards import CARDS, resident
from hnkernels.triton.cost import (
    FIRST_LOAD,
    LATER_LOAD,
    LAUNCH,
    Work,
    epilogue,
    seconds_of_chain,
    seconds_of_processors,
    vendor_seconds,
)
from hnkernels.triton.launch import Launch
from hnkernels.triton.target import TARGETS
from hnkernels.triton.tiling import Tiles, proven

COMPILED = RESULTS / "compiled.csv"

SUMMED = ("weight_gradient_kernel", "lowrank_factor_gradient_kernel")
"""Their steps go along BLOCK_M, tokens; those of the others along BLOCK_K."""

TILES = "tiles"
"""The benchmark of the rows of products by tiles, which are not a case."""

STRICTER = "time by the stricter model"
"""The quantity of the rows of the stricter model."""

_DERIVED = ("hidden_gradient_kernel", "normed_gradient_kernel")
_ROW_WARPS = 4


_LAUNCHES = (
    "A. Gray, Getting Started with CUDA Graphs, developer.nvidia.com/blog/cuda-graphs, 2019: a kernel of 2.9 µs takes "
    "3.8 µs each where many are launched without waiting, and 3.4 µs each in a graph"
)
_ELSEWHERE = f"none published for this GPU was found; that of a V100 is taken: {_LAUNCHES}"


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: of rows and tables.
        target: the architecture that Triton compiles for.
        processors: streaming multiprocessors, or compute units.
        matrix_rate: dense products of fp16 or bf16, added up in fp32, FLOP/s. fp32 is not modelled.
        bandwidth: of the device's memory, B/s.
        launch_cost: what a kernel costs besides its own time, launched from a stream that never runs empty, s.
        graph_cost: the same of a kernel in a CUDA graph, s; ``None`` where nothing is published.
        sources: where each figure comes from, by the attribute's name.
    """

    name: str
    target: str
    processors: int
    matrix_rate: float
    bandwidth: float
    launch_cost: float
    graph_cost: float | None
    sources: dict[str, str]


def _sources(rate: str, memory: str, processors: str, graphs: bool = True) -> dict[str, str]:
    sources = {"matrix_rate": rate, "bandwidth": memory, "processors": processors, "launch_cost": _ELSEWHERE}
    return sources | ({"graph_cost": _ELSEWHERE} if graphs else {})


_A100 = "NVIDIA A100 Tensor Core GPU data sheet (80 GB SXM): FP16 and BF16 Tensor Core 312 TFLOPS, 2,039 GB/s"
_H100 = "NVIDIA H100 Tensor Core GPU data sheet (SXM): FP16 and BF16 Tensor Core 1,979 TFLOPS with sparsity, 3.35 TB/s"
_ADA = "NVIDIA Ada GPU Architecture white paper, appendix A, GeForce RTX 4090"
_MI300X = "AMD Instinct MI300X accelerator data sheet"


def gpu_of(name: str, target: str, graph_cost: float | None, sources: dict[str, str]) -> Gpu:
    """The GPU that tiles for a target are chosen by."""
    card = CARDS[target]
    return Gpu(name, target, TARGETS[target].processors, card.matrix_rate, card.bandwidth, LAUNCH, graph_cost, sources)


GPUS = {
    gpu.name: gpu
    for gpu in (
        gpu_of("A100", "sm_80", 0.5e-6,
             _sources(_A100, _A100, "NVIDIA A100 Tensor Core GPU Architecture white paper: 108 SMs")),
        gpu_of("H100", "sm_90", 0.5e-6,
             _sources(f"{_H100}; dense is half of that", _H100,
                      "NVIDIA H100 Tensor Core GPU Architecture white paper: 132 SMs (SXM5)")),
        gpu_of("RTX 4090", "sm_89", 0.5e-6,
             _sources(f"{_ADA}: peak FP16 and BF16 Tensor TFLOPS with FP32 accumulate 165.2, dense",
                      f"{_ADA}: 1,008 GB/s", f"{_ADA}: 128 SMs")),
        gpu_of("MI300X", "gfx942", None,
             _sources(f"{_MI300X}: FP16 and BF16 matrix 1,307.4 TFLOPS, dense", f"{_MI300X}: 5.3 TB/s",
                      f"{_MI300X}: 304 compute units", graphs=False)),
    )
}  # fmt: skip


def seconds(account: Account, gpu: Gpu, launch_cost: float) -> float:
    """The predicted time, by the roofline, of an account whose products are in fp16 or bf16."""
    return sum(
        max(launch.flops / gpu.matrix_rate, (launch.bytes_read + launch.bytes_written) / gpu.bandwidth) + launch_cost
        for launch in account.launches
    )


def stricter_seconds(account: Account, gpu: Gpu, launch_cost: float) -> float:
    """The predicted time of an account by the stricter model."""
    return sum(launch_cost + launch_seconds(launch, gpu) for launch in account.launches)


def launch_seconds(launch: Launch, gpu: Gpu) -> float:
    """That of one launch by the stricter model, without its cost."""
    memory = (launch.bytes_read + launch.bytes_written) / gpu.bandwidth
    return FIRST_LOAD + max(memory, launch.flops / gpu.matrix_rate, _processors(launch, gpu))


def rows(shape: Shape, everyone: Mapping[str, Accounts], gpu: Gpu) -> list[Row]:
    """Predicted times of every provider and mode: by the roofline, where it is known what a launch costs in a graph in
    one as well; then, of all but the bound, by the stricter model."""
    times = {
        (quantity, provider, mode): seconds(account, gpu, cost)
        for quantity, cost in (("time", gpu.launch_cost), ("time in a graph", gpu.graph_cost))
        if cost is not None
        for provider, accounts in everyone.items()
        for mode, account in accounts.items()
    }
    times |= {
        (STRICTER, provider, mode): stricter_seconds(account, gpu, gpu.launch_cost)
        for provider, accounts in everyone.items()
        if provider != "bound"
        for mode, account in accounts.items()
    }
    benchmark, size = named(shape)
    return [
        Row("modelled", benchmark, mode, size, "fp16", provider, quantity, value, "s", target=gpu.name)
        for (quantity, provider, mode), value in times.items()
    ]


def times(given: Iterable[Row]) -> list[str]:
    """A table per GPU: predicted times by both models, and what share of its time the floor is, by provider."""
    found: dict[str, dict[tuple[str, str, str, str], dict[str, float]]] = {name: {} for name in GPUS}
    for row in select(given, kind="modelled"):
        if row.benchmark != TILES:
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
            strict = f"{figures[STRICTER] * 1e6:.1f}" if STRICTER in figures else "–"
            lines.append(f"| {what} | {time * 1e6:.1f} | {in_a_graph} | {floor / time:.0%} | {strict} |")
    return lines


def summary(given: Sequence[Row]) -> list[str]:
    """How many times as fast as the web UIs' way the model says the others are, and how near they come to the floor."""
    times: dict[tuple[str, str, str, str], dict[str, float]] = {}
    strict: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for into, quantity in ((times, "time"), (strict, STRICTER)):
        for row in select(given, kind="modelled", quantity=quantity):
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


def _processors(launch: Launch, gpu: Gpu) -> float:
    target = TARGETS[gpu.target]
    if launch.product is not None:
        return vendor_seconds(launch.product, gpu.target)
    if not launch.steps:
        return 0.0
    if launch.tiles is None:
        card = CARDS[gpu.target]
        at_once = target.processors * min(card.programs, card.warps * card.schedulers // _ROW_WARPS)
        return -(-launch.programs // at_once) * launch.steps * LATER_LOAD
    t = launch.tiles
    operations = epilogue(launch.act, launch.kernel in _DERIVED)
    if launch.chain is not None:
        return seconds_of_chain(launch.chain._replace(operations=operations), launch.programs, launch.steps, target)
    summed = launch.kernel in SUMMED
    blocks = (t.block_n, t.block_k, t.block_m) if summed else (t.block_m, t.block_n, t.block_k)
    fit = fitting(gpu.target, launch.kernel, t)
    work = Work(launch.programs, launch.steps, *blocks, t.warps, t.stages, fit, operations)
    return seconds_of_processors(work, target)


def fitting(target: str, kernel: str, tiles: Tiles) -> int:
    """How many programs of a kernel fit on a processor, in the form that takes the most; by ``proven.csv`` where it
    has not been compiled, and 1 where that does not have it either."""
    text = tiles_text(replace(tiles, splits=1))
    return _fitting().get((target, kernel, text)) or _proven(target).get(tiles, 1)


def tiles_text(tiles: Tiles) -> str:
    """As ``Configuration.tiles`` has them, and into how many parts they cut up the depth."""
    parts = f", {tiles.splits} parts" if tiles.splits > 1 else ""
    return f"{tiles.block_m}x{tiles.block_n}x{tiles.block_k} w{tiles.warps} s{tiles.stages}{parts}"


@lru_cache
def _fitting() -> dict[tuple[str, str, str], int]:
    found: dict[tuple[str, str, str], int] = {}
    for (target, kernel, _, tiles, _), lines in compiled_lines().items():
        warps = int(tiles.split(" w")[1].split()[0])
        for line in lines:
            fit = resident(TARGETS[target], int(line["registers"]), int(line["shared_bytes"]), warps)
            found[target, kernel, tiles] = min(fit, found.get((target, kernel, tiles), fit))
    return found


@lru_cache
def _proven(target: str) -> dict[Tiles, int]:
    found: dict[Tiles, int] = {}
    for kind in proven(target).values():
        for tiles, fit in kind.items():
            found[tiles] = min(fit, found.get(tiles, fit))
    return found


@lru_cache
def compiled_lines() -> dict[tuple[str, ...], list[dict[str, str]]]:
    """The readings by what was compiled; those with faults are none."""
    lines: dict[tuple[str, ...], list[dict[str, str]]] = {}
    with COMPILED.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if not line["faults"]:
                key = tuple(line[name] for name in ("target", "kernel", "variant", "tiles", "dtype"))
                lines.setdefault(key, []).append(line)
    return lines
