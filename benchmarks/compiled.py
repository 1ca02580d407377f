"""``python -m benchmarks.compiled [--targets …] [--dtypes …]``: proof by compilation.

Every kernel, in every form that the library launches, is compiled for every target, without a device; printed is what
the machine code says. ``forms`` makes the launches on the meta device, ``machine_code`` makes code of them and reads
it, and here it is judged. A full run writes benchmarks/results/compiled.csv and compiled.md, and to
hnkernels/triton/proven.csv which tiles may be chosen. It exits with 1 if a kernel has a fault; one of tiles that are
mere candidates is left out instead.

With ``--epilogues [activation …]`` it prints what activations cost in the epilogue of a product, as CSV: the
instructions outside the loop on sm_90 of three kernels in fp16 whose threads hold 64 elements each (tiles of
128x128x64, 8 warps, 3 stages): the layer with the activation, the gradient with its derivative, and the gradient with
both, which the gradient of the weights needs.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.forms import all_calls, sample
from benchmarks.machine_code import Configuration, MachineCode, compiled, configuration, distinct, outside_loops, read
from benchmarks.rows import RESULTS
from hnkernels.network.activations import ACTIVATIONS
from hnkernels.triton.cards import CARDS, occupancy, resident
from hnkernels.triton.kernels.hidden_gradient import hidden_gradient
from hnkernels.triton.kernels.layer_forward import layer_forward
from hnkernels.triton.launch import Call, capturing
from hnkernels.triton.target import TARGETS, forced_route, planned_for
from hnkernels.triton.tiling import KINDS, PROVEN, Tiles, candidates, forced

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

EPILOGUES = ("value", "derivative", "both")
"""The kernels whose epilogues are counted."""

_KINDS = {
    "grouped_linear_kernel": ("linear",),
    "normed_gradient_kernel": ("backward",),
    "input_gradient_kernel": ("input gradient",),
    "grouped_input_gradient_kernel": ("backward",),
}
_VECTORS = "finishes a norm"

LEAST_WGMMA_ROWS = 64
WIDE_LOAD = 16

_TOGETHER = 16
"""Kernels that are read together, at most."""

T = TypeVar("T")
Work = TypeVar("Work")

_work: list[Any] = []  # of forked processes; a kernel does not pickle


def main(arguments: list[str]) -> int:
    """Runs the matrix, or the part of it that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--sample", action="store_true", help="only the part that the tests compile")
    parser.add_argument("--epilogues", nargs="*", metavar="activation", help="only count their instructions")
    parser.add_argument("--out", type=Path, help="folder for compiled.csv and compiled.md")
    options = parser.parse_args(arguments)
    if options.epilogues is not None:
        print_epilogues(options.epilogues)
        return 0
    configurations = sample() if options.sample else _matrix(options.targets, options.dtypes)
    rows, tiles = accepted(compile_all(configurations))
    print("\n".join([*markdown(rows), *(str(r) for r in rows if r.faults)]))
    full = not options.sample and options.targets == list(TARGETS) and options.dtypes == list(DTYPES)
    if options.out or full:
        write(rows, options.out or RESULTS)
    if full:
        write_proven(tiles)
    return int(any(r.faults for r in rows))


def in_processes(function: Callable[[Work], T], work: Sequence[Work]) -> Iterator[T]:
    """What the function makes of everything, in order, by as many processes as there are processors."""
    _work[:] = work
    with multiprocessing.get_context("fork").Pool() as pool:
        yield from pool.imap(partial(_call, function), range(len(_work)))


def _call(function: Callable[[Any], T], index: int) -> T:
    return function(_work[index])


def compile_all(configurations: list[Configuration]) -> list[Row]:
    """The rows of configurations."""
    batches = [configurations[at : at + _TOGETHER] for at in range(0, len(configurations), _TOGETHER)]
    rows: list[Row] = []
    for found in in_processes(compile_some, batches):
        rows += found
        if len(rows) % 100 < _TOGETHER:
            print(f"{len(rows)} of {len(configurations)} compiled", file=sys.stderr)
    return rows


def _matrix(targets: list[str], dtypes: list[str]) -> list[Configuration]:
    chosen = [TARGETS[name] for name in targets]
    return [c for t in chosen for c in distinct(all_calls(t, [DTYPES[d] for d in dtypes]), t)]


@dataclass(frozen=True)
class Row:
    """One compiled kernel.

    Attributes:
        target, kernel, variant, tiles, dtype: what was compiled.
        registers, stack, spills, shared_bytes, matrix, load_bytes: see ``MachineCode``.
        matrix_percent: of the instructions of the loops that multiply.
        occupancy_percent: warps that fit at once.
        origin: a launch that needs it.
        faults: what is wrong with it; empty, if it is fine.
    """

    target: str
    kernel: str
    variant: str
    tiles: str
    dtype: str
    registers: int
    stack: int
    spills: int
    shared_bytes: int
    occupancy_percent: int
    matrix: str
    matrix_percent: int
    load_bytes: int
    origin: str
    faults: str

    @classmethod
    def of(cls, line: dict[str, str]) -> Row:
        """A line of ``compiled.csv``."""
        numbers = {f.name for f in fields(cls) if f.type == "int"}
        return cls(**{k: int(v) if k in numbers else v for k, v in line.items()})  # type: ignore[arg-type]


def compile_some(configurations: Sequence[Configuration]) -> list[Row]:
    """Compiles configurations and reads their figures."""
    kernels: dict[Configuration, Any] = {}
    rows: dict[Configuration, Row] = {}
    for config in configurations:
        try:
            kernels[config] = compiled(config)
        except Exception as fault:  # each backend says in its own way what it cannot compile
            wrong = f"does not compile: {fault}".splitlines()[0]
            rows[config] = _row(config, MachineCode(0, 0, 0, 0, "", 0.0, 0), 0.0, wrong)
    for config, code in zip(kernels, read(list(kernels.values())), strict=True):
        share = occupancy(config.target, code.registers, code.shared, config.warps)
        rows[config] = _row(config, code, share, "; ".join(faults(config, code)))
    return [rows[config] for config in configurations]


def _row(config: Configuration, code: MachineCode, share: float, wrong: str) -> Row:
    return Row(
        config.target.name, config.name, config.variant, config.tiles, config.dtype, code.registers, code.stack,
        code.spills, code.shared, round(100 * share), code.matrix, round(100 * code.matrix_share), code.load_bytes,
        config.origin, wrong,
    )  # fmt: skip


def faults(config: Configuration, code: MachineCode) -> list[str]:
    """What is wrong with a kernel; nothing, if it is fine."""
    found = []
    if code.stack or code.spills:
        found.append(f"{code.stack} bytes of stack, {code.spills} spills")
    limit = CARDS[config.target.name].shared
    if code.shared > limit:
        found.append(f"{code.shared} bytes of shared memory, {limit} are there")
    if code.early:
        found.append(f"{code.early} before it waits for the launches before it")
    if not config.is_product:
        return found
    # Of a gradient that is summed over tokens those of the weight.
    summed = config.name in ("weight_gradient_kernel", "lowrank_factor_gradient_kernel")
    rows = config.constant("BLOCK_N" if summed else "BLOCK_M")
    if not code.matrix:
        found.append("no matrix instructions")
    elif not code.matrix_share:
        found.append("no matrix instructions in a loop")
    elif config.target.name == "sm_90" and rows >= LEAST_WGMMA_ROWS and "HGMMA" not in code.matrix:
        found.append("no wgmma")
    if code.load_bytes < WIDE_LOAD:
        found.append(f"loads {code.load_bytes} bytes at a time in the loop")
    return found


def accepted(rows: Sequence[Row]) -> tuple[list[Row], list[dict[str, object]]]:
    """The rows without those of candidates for tiles that have a fault in some form; and the lines of ``proven.csv``:
    by target and kind of kernel, the tiles that have none, and how many of their programs fit on a processor."""
    forms: dict[tuple[str, str, Tiles], list[Row]] = {}
    for r in rows:
        for kind in kinds_of(r):
            forms.setdefault((r.target, kind, tiles_of(r.tiles)), []).append(r)
    rejected: set[int] = set()  # unless they are a form of another kind
    kept: set[int] = set()
    lines: list[dict[str, object]] = []
    for name, target in TARGETS.items():
        for kind in dict.fromkeys(kind for _, kind, _ in forms):
            for tiles in candidates(KINDS[kind][0], target):
                found = forms.get((name, kind, tiles), [])
                if any(r.faults for r in found):
                    rejected.update(map(id, found))
                elif found:
                    kept.update(map(id, found))
                    fit = min(resident(target, r.registers, r.shared_bytes, tiles.warps) for r in found)
                    blocks = {k: getattr(tiles, k) for k in ("block_m", "block_n", "block_k", "warps", "stages")}
                    lines.append({"target": name, "kind": kind, **blocks, "resident": fit})
    return [r for r in rows if id(r) in kept or id(r) not in rejected], lines


def kinds_of(r: Row) -> tuple[str, ...]:
    """The kinds of matrix kernel that it is a form of, among those whose tiles are chosen by the model."""
    words = set(r.variant.split())
    if r.kernel == "weight_gradient_kernel":
        return ("normalising gradient",) if _VECTORS in r.variant else ("gradient",)
    if r.kernel == "linear_streams_kernel":
        return ("backward",) if "transposed" in words else ("linear",)
    if r.kernel == "mlp_layer_forward_kernel":
        if "dropout" in words:
            return ("layer with dropout",)
        return ("layer",) if "prelu" in words or {"norm_in", "norm_out"} <= words else ("layer", "light layer")
    if r.kernel == "hidden_gradient_kernel":
        if "dropout" in words:
            return ("backward with dropout",)
        return ("backward",) if "h" in words else ("backward", "light backward")
    return _KINDS.get(r.kernel, ())


def tiles_of(text: str) -> Tiles:
    """What ``Configuration.tiles`` says."""
    blocks, warps, stages = text.split()
    return Tiles(*map(int, blocks.split("x")), int(warps[1:]), int(stages[1:]))


def write_proven(lines: Sequence[dict[str, object]]) -> None:
    """Writes what the tile table may choose from."""
    with PROVEN.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def write(rows: Sequence[Row], folder: Path) -> None:
    """Writes ``compiled.csv`` and ``compiled.md`` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "compiled.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(r) for r in rows)
    (folder / "compiled.md").write_text("\n".join(markdown(rows)) + "\n", encoding="utf-8")


def markdown(rows: Sequence[Row]) -> list[str]:
    """The table as lines of Markdown, a line per target and kernel."""
    import triton

    faulty = sum(bool(r.faults) for r in rows)
    dtypes = ", ".join(_dtypes(rows))
    lines = [
        f"Compiled with Triton {triton.__version__}, not measured: {len(rows)} kernels, of {dtypes} (sums in fp32),"
        f" {faulty} with faults. Lowest"
        " to highest of each kind. Matrix: share of matrix instructions in the loops that multiply; load: usual width.",
        "",
        "| target | kernel | forms | registers | spills | shared KiB | occupancy % | matrix instructions | matrix % |"
        " load bytes | faults |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for r in rows:
        groups.setdefault((r.target, r.kernel), []).append(r)
    for (target, kernel), group in groups.items():
        matrix = " ".join(sorted({word for r in group for word in r.matrix.split()}))
        lines.append(
            f"| {target} | {kernel.removesuffix('_kernel')} | {len(group)} | {_range(r.registers for r in group)} |"
            f" {_range(r.spills for r in group)} | {_range(r.shared_bytes // 1024 for r in group)} |"
            f" {_range(r.occupancy_percent for r in group)} | {matrix or '–'} |"
            f" {_range(r.matrix_percent for r in group) if matrix else '–'} | {_range(r.load_bytes for r in group)} |"
            f" {sum(bool(r.faults) for r in group)} |"
        )
    return lines


def _dtypes(rows: Sequence[Row]) -> list[str]:
    """Those compiled, each with its targets where it is not all of them."""
    everywhere = {r.target for r in rows}
    found = []
    for dtype in sorted({r.dtype for r in rows} - {"fp32"}, reverse=True):
        targets = [name for name in TARGETS if name in {r.target for r in rows if r.dtype == dtype}]
        found.append(dtype if set(targets) == everywhere else f"{dtype} ({', '.join(targets)} alone)")
    return found


def _range(values: Iterable[int]) -> str:
    values = list(values)
    return str(min(values)) if min(values) == max(values) else f"{min(values)}–{max(values)}"


def print_epilogues(names: Sequence[str]) -> None:
    """Prints the instructions outside the loop of the kernels of ``EPILOGUES``, by activation: of all that kernels take
    without a parameter if none are named."""
    acts = names or sorted({row.device for row in ACTIVATIONS.values() if row.device not in (None, "prelu")})
    kernels = [compiled(configuration(call, TARGETS["sm_90"])) for act in acts for call in _epilogues(act)]
    counts = iter(outside_loops(kernels))
    print("activation", *EPILOGUES, sep=",")
    for act in acts:
        print(act, *(next(counts) for _ in EPILOGUES), sep=",")


def _epilogues(act: str) -> list[Call]:
    def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = torch.empty(2, *shape, dtype=torch.float16, device="meta")
        return first, second

    rows, width = 4096, 640
    x, w = pair(rows, width), pair(width, width)
    a = torch.empty(2, rows, width, dtype=torch.float16, device="meta")
    with (
        planned_for(TARGETS["sm_90"]),
        forced(Tiles(128, 128, 64, 8, 3)),
        forced_route("kernels"),
        capturing() as captured,
    ):
        layer_forward(x, w, pair(width), act)
        for with_h in (False, True):
            hidden_gradient(x, w, act=act, a=a, fused=True, with_h=with_h)
    return captured


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
