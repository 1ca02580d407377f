"""``python -m benchmarks.limits``: what the accounts and the compiled code say of GPUs that none of this has run on.

Writes benchmarks/results/any/modelled.csv, and prints three tables: predicted times by both models of ``roofline``; the
tiles of Stable Diffusion's products, by rule of thumb and by the model, what the model says of both, and where it parts
from the roofline; and what the machine code of the launches says. Modelled and compiled, not measured. Takes about a
minute, most of it for compiling the reference.

Every launch of the plan is looked up in ``benchmarks/results/compiled.csv``, by target, kernel, form, tiles and dtype;
of several readings that agree in these the lowest counts. What is not there is ``"not compiled"``. The share of matrix
instructions says nothing across architectures: one ``wgmma`` does the work of dozens of ``mma``.

Besides, for every product: the bytes that its loads keep in flight on one multiprocessor,

    resident programs · (stages − 1) · bytes of both operands' tiles,

where as many programs are resident as registers, shared memory and the launch's own number of them allow, and a
pipeline of n stages works on one of them while n − 1 are being loaded. By Little's law these bytes cover a latency of

    bytes in flight · multiprocessors / bandwidth

at the full bandwidth: where the memory answers later than that, the bandwidth is not reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch

from benchmarks import counting
from benchmarks.accounting import COUNTED, ELEMENT, bounds, named, on_any_machine
from benchmarks.machine_code import Configuration, configuration
from benchmarks.roofline import GPUS, STRICTER, SUMMED, TILES, Gpu, compiled_lines, tiles_text, times
from benchmarks.roofline import rows as predicted_rows
from benchmarks.rows import RESULTS, Row, select, write
from benchmarks.shapes import NETWORKS, RELU, SD15, SD15_MIDDLE, SDXL, TEXTS, Layers, Network, Samples, Shape
from hnkernels.triton import vendor
from hnkernels.triton.autotune import choose
from hnkernels.triton.cards import occupancy, resident
from hnkernels.triton.cost import FIRST_LOAD, LAUNCH
from hnkernels.triton.launch import capturing, recording
from hnkernels.triton.route import by_library
from hnkernels.triton.target import TARGETS, planned_for
from hnkernels.triton.tiling import KINDS, MOST_SPLITS, heuristic, modelled

FILE = RESULTS / "any" / "modelled.csv"

MODES = ("inference", "forward + backward")

MODELLED = (*SD15, *SDXL, TEXTS[0])
"""The single layers that are modelled; beside them go all cross-attention layers together and low-rank weights."""

TILED = (SD15[0], SD15[1], SD15_MIDDLE, SD15[2], *SDXL, TEXTS[0], TEXTS[2])
"""The layers whose products' tiles are compared."""


def chosen() -> list[Shape]:
    """The shapes that are modelled."""
    networks = [network for network in NETWORKS if network != Network("silu")]
    return [s for s in COUNTED if not _single(s) or (s.of(RELU) in MODELLED and s.network in networks)]


def read_shapes() -> list[Shape]:
    """Those whose machine code is read: that of other networks differs in its epilogues."""
    return [s for s in chosen() if isinstance(s, Samples) or s.network in (RELU, Network("relu", True))]


def _single(shape: Shape) -> TypeGuard[Layers]:
    return isinstance(shape, Layers) and len(shape.outs) == 1


def all_rows(compiled: bool = True) -> list[Row]:
    """The rows of ``modelled.csv``; what is predicted of ``torch.compile`` only if wanted."""
    times = [row for shape in chosen() for row in model(shape, compiled)]
    read_from_code = [row for shape in read_shapes() for mode in MODES for row in read(shape, mode)[0]]
    return [*times, *tile_rows(), *read_from_code]


def model(shape: Shape, compiled: bool = True) -> list[Row]:
    """Predicted times on every GPU, of all providers and of the bound; ``torch.compile``'s only if wanted."""
    names = [name for name in counting.providers(shape) if name != "triton"]
    names += ["compile"] if compiled and counting.compilable(shape) else []
    everyone = {name: counting.accounts(shape, name) for name in names}
    rows: list[Row] = []
    for gpu in GPUS.values():
        ours = counting.accounts(shape, "triton", gpu.target)
        modes = [mode for mode in MODES if mode in ours]
        accounts = {**everyone, "triton": ours, "bound": bounds(shape)}
        rows += predicted_rows(shape, {who: {m: done[m] for m in modes} for who, done in accounts.items()}, gpu)
    return rows


def products(width: int, tokens: int, n: int) -> dict[str, tuple[str, int, int, int, int]]:
    """Of a ``[1, 2, 1]`` network, by what they are called: kind of kernel, M, N, K, and the most splits."""
    return {
        "first linear": ("light layer", tokens, 2 * width, width, 1),
        "last linear": ("light layer", tokens, width, 2 * width, 1),
        "projection with the last linear": ("linear", tokens, n, 3 * width, MOST_SPLITS),
        "hidden gradient": ("light backward", tokens, 2 * width, width, 1),
        "input gradient": ("input gradient", tokens, width, 4 * width, MOST_SPLITS),
        "weight gradient": ("gradient", tokens, 2 * width, width, 1),
    }


def tile_rows() -> list[Row]:
    """Every product on every GPU, with the tiles by rule, with those chosen, by the library, by the roofline."""
    return [
        Row("modelled", TILES, name, f"{shape.width} x {shape.tokens}", "fp16", who, STRICTER, seconds, "s",
            target=gpu.name)
        for gpu in GPUS.values()
        for shape in TILED
        for name, product in products(shape.width, shape.tokens, shape.outs[0]).items()
        for who, seconds in _tile_times(gpu, *product)
    ]  # fmt: skip


def tile_table(given: Sequence[Row]) -> list[str]:
    """The rows as a table, a line per product."""
    lines = [
        "K and V in one launch, fp16, from one context; modelled, not measured. The library is the vendor's, with its "
        "other launches, but without what has to follow them. The last column says how far the stricter model parts "
        "from the roofline: 1.0 where memory or the matrix units are the limit, more where waves, the cache or waiting "
        "are.",
        "",
        "| GPU | product | shape | by rule | µs | chosen | µs | library, µs | roofline, µs | chosen / roofline |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in select(given, benchmark=TILES):
        found.setdefault((row.target, row.mode, row.shape), []).append(row)
    for what, (rule, chosen, library, limit) in found.items():
        names = [row.provider.split(": ")[1] for row in (rule, chosen)]
        lines.append(
            f"| {' | '.join(what)} | {names[0]} | {rule.value * 1e6:.1f} | {names[1]} | {chosen.value * 1e6:.1f} | "
            f"{library.value * 1e6:.1f} | {limit.value * 1e6:.1f} | {chosen.value / limit.value:.1f} |"
        )
    return lines


def _tile_times(gpu: Gpu, kind: str, m: int, n: int, k: int, splits: int) -> list[tuple[str, float]]:
    target = TARGETS[gpu.target]
    rule = heuristic(KINDS[kind][0], m, n, k, torch.float16, target)
    chosen = choose(kind, m, n, k, torch.float16, target, splits=splits)
    of_both = kind == "input gradient"  # in one sum, whose depth is that of K and of V
    streams = 1 if of_both else 2
    multiplied = (n, k, m) if KINDS[kind][0] == "gradient" else (m, n, k // 2 if of_both else k)
    flops, bytes_moved = 2 * streams * m * n * k, ELEMENT * streams * (m * k + n * k + m * n)
    return [
        (f"rule: {tiles_text(rule)}", modelled(kind, rule, m, n, k, target)),
        (f"chosen: {tiles_text(chosen)}", modelled(kind, chosen, m, n, k, target)),
        ("library", by_library([multiplied] * 2, target) - LAUNCH - FIRST_LOAD),
        ("roofline", max(flops / gpu.matrix_rate, bytes_moved / gpu.bandwidth)),
    ]


@dataclass(frozen=True)
class Reading:
    """One launch.

    Attributes:
        kernel, variant, tiles: what is launched.
        programs: how many.
        matrix_share: of matrix instructions among those of the main loop; ``None`` if there are no products.
        occupancy: share of the warps that fit at once.
        in_flight: bytes per multiprocessor; ``None`` if there are no products.
        covered: the latency that these cover at full bandwidth, s.
        found: whether it has been compiled; if not, the figures are ``None``.
    """

    kernel: str
    variant: str
    tiles: str
    programs: int
    matrix_share: float | None
    occupancy: float | None
    in_flight: int | None
    covered: float | None
    found: bool


def readings(shape: Shape, mode: str, gpu: Gpu) -> list[Reading]:
    """The launches of our kernels at a shape, at ``"inference"`` or ``"forward + backward"``, on a GPU."""
    target, training = TARGETS[gpu.target], mode != "inference"
    with planned_for(target), torch.set_grad_enabled(training):
        run = counting.work(shape, "triton", training).run
        run()  # folds, composes and casts what is kept from then on
        with recording() as launches, capturing() as calls:
            results = run()
            if training:
                torch.autograd.backward(list(results), [torch.empty_like(t) for t in results])
    programs = [launch.programs for launch in launches if not launch.kernel.startswith(vendor.PREFIX)]
    return [_reading(configuration(call, target), count, gpu) for call, count in zip(calls, programs, strict=True)]


def reading_rows(shape: Shape, mode: str, found: Sequence[Reading], gpu: Gpu) -> list[Row]:
    """The figures of launches that have been compiled; a quantity begins with the launch's number and kernel."""
    listed = []
    benchmark, size = named(shape)
    for number, reading in enumerate(found, 1):
        figures = {
            "matrix share": (reading.matrix_share, "1"),
            "occupancy": (reading.occupancy, "1"),
            "bytes in flight": (reading.in_flight, "B"),
            "latency covered": (reading.covered, "s"),
        }
        for name, (value, unit) in figures.items():
            if value is not None:
                quantity = f"{number} {reading.kernel}: {name}"
                what = ("compiled", benchmark, mode, size, "fp16", "triton", quantity)
                listed.append(Row(*what, float(value), unit, target=gpu.name))
    return listed


def _reading(config: Configuration, programs: int, gpu: Gpu) -> Reading:
    what = (config.name.removesuffix("_kernel"), config.variant, config.tiles, programs)
    found = compiled_lines().get((config.target.name, config.name, config.variant, config.tiles, config.dtype), [])
    if not found:
        return Reading(*what, None, None, None, None, False)
    taken = [(config.target, int(line["registers"]), int(line["shared_bytes"]), config.warps) for line in found]
    share = min(occupancy(*each) for each in taken)
    if not config.is_product:
        return Reading(*what, None, share, None, None, True)
    matrix = min(int(line["matrix_percent"]) for line in found) / 100
    at_once = min(*(resident(*each) for each in taken), -(-programs // gpu.processors))
    in_flight = at_once * (dict(config.options)["num_stages"] - 1) * _step_bytes(config)
    return Reading(*what, matrix, share, in_flight, in_flight * gpu.processors / gpu.bandwidth, True)


def _step_bytes(config: Configuration) -> int:
    """Of both operands' tiles in one step of the main loop."""
    m, n, k = (config.constant(f"BLOCK_{axis}") for axis in "MNK")
    n = n or config.constant("BLOCK_R")  # a product whose columns are ranks
    if config.name == "hidden_and_projection_kernel":  # its own rows stay, and both products' weights are loaded
        return ELEMENT * 2 * k * (n + n // 4)
    return ELEMENT * (m * (n + k) if config.name in SUMMED else k * (m + n))


def read(shape: Shape, mode: str) -> tuple[list[Row], list[str]]:
    """What the machine code of a shape's launches says on every GPU: as rows, and as lines of a table."""
    rows: list[Row] = []
    lines: list[str] = []
    what = ", ".join((*named(shape), mode))
    for gpu in GPUS.values():
        found = readings(shape, mode, gpu)
        rows += reading_rows(shape, mode, found, gpu)
        lines += [f"| {gpu.name} | {what} | {_line(reading)} |" for reading in found]
    return rows, lines


def code(given: Sequence[Row]) -> list[str]:
    """What the compiled kernels look like, launch by launch."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for row in select(given, kind="compiled"):
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


def read_heading() -> Sequence[str]:
    """What stands above the lines of ``read``."""
    return (
        "",
        "### Machine code of the launches, compiled, not measured",
        "",
        "| GPU | case | kernel | form | tiles | programs | matrix share | occupancy | KiB in flight | covers, ns |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    )


def _line(reading: Reading) -> str:
    what = f"{reading.kernel} | {reading.variant} | {reading.tiles} | {reading.programs}"
    if not reading.found:
        return f"{what} | not compiled | | | "
    matrix = "–" if reading.matrix_share is None else f"{reading.matrix_share:.0%}"
    if reading.in_flight is None or reading.covered is None:
        return f"{what} | {matrix} | {reading.occupancy:.0%} | – | –"
    flight = f"{reading.in_flight / 1024:.0f} | {reading.covered * 1e9:.0f}"
    return f"{what} | {matrix} | {reading.occupancy:.0%} | {flight}"


if __name__ == "__main__":
    everything = all_rows()
    write(on_any_machine(everything), FILE)
    read_lines = [line for shape in read_shapes() for mode in MODES for line in read(shape, mode)[1]]
    print("\n".join([*times(everything), "", *tile_table(everything), *read_heading(), *read_lines]))
