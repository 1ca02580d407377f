"""The tiles of Stable Diffusion's products, by rule of thumb and by the model: what the model says of both, and where
it parts from the roofline. Modelled, not measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.limits.gpus import GPUS, Gpu
from benchmarks.limits.stricter import QUANTITY
from benchmarks.rows import Row, select
from hnkernels.triton.autotune import choose
from hnkernels.triton.cost import FIRST_LOAD, LAUNCH
from hnkernels.triton.route import by_library
from hnkernels.triton.target import TARGETS
from hnkernels.triton.tiling import KINDS, MOST_SPLITS, Tiles, heuristic, modelled

BENCHMARK = "tiles"

SHAPES = (
    (320, 4096, 320), (640, 1024, 640), (1280, 64, 1280), (1280, 256, 1280), (640, 4096, 640), (1280, 1024, 1280),
    (768, 77, 1280), (2048, 77, 1280),
)  # fmt: skip
"""Width, tokens, and n of the projections."""

_ELEMENT = 2


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


def rows() -> list[Row]:
    """Every product on every GPU, with the tiles by rule, with those chosen, by the library, by the roofline."""
    return [
        Row("modelled", BENCHMARK, name, f"{width} x {tokens}", "fp16", who, QUANTITY, seconds, "s", target=gpu.name)
        for gpu in GPUS.values()
        for width, tokens, n in SHAPES
        for name, product in products(width, tokens, n).items()
        for who, seconds in _times(gpu, *product)
    ]


def table(given: Sequence[Row]) -> list[str]:
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
    for row in select(given, benchmark=BENCHMARK):
        found.setdefault((row.target, row.mode, row.shape), []).append(row)
    for what, (rule, chosen, library, roofline) in found.items():
        names = [row.provider.split(": ")[1] for row in (rule, chosen)]
        lines.append(
            f"| {' | '.join(what)} | {names[0]} | {rule.value * 1e6:.1f} | {names[1]} | {chosen.value * 1e6:.1f} | "
            f"{library.value * 1e6:.1f} | {roofline.value * 1e6:.1f} | {chosen.value / roofline.value:.1f} |"
        )
    return lines


def _times(gpu: Gpu, kind: str, m: int, n: int, k: int, splits: int) -> list[tuple[str, float]]:
    target = TARGETS[gpu.target]
    rule = heuristic(KINDS[kind][0], m, n, k, torch.float16, target)
    chosen = choose(kind, m, n, k, torch.float16, target, splits=splits)
    of_both = kind == "input gradient"  # in one sum, whose depth is that of K and of V
    streams = 1 if of_both else 2
    multiplied = (n, k, m) if KINDS[kind][0] == "gradient" else (m, n, k // 2 if of_both else k)
    flops, bytes_moved = 2 * streams * m * n * k, _ELEMENT * streams * (m * k + n * k + m * n)
    return [
        (f"rule: {_name(rule)}", modelled(kind, rule, m, n, k, target)),
        (f"chosen: {_name(chosen)}", modelled(kind, chosen, m, n, k, target)),
        ("library", by_library([multiplied] * 2, target) - LAUNCH - FIRST_LOAD),
        ("roofline", max(flops / gpu.matrix_rate, bytes_moved / gpu.bandwidth)),
    ]


def _name(tiles: Tiles) -> str:
    parts = f", {tiles.splits} parts" if tiles.splits > 1 else ""
    return f"{tiles.block_m}x{tiles.block_n}x{tiles.block_k} w{tiles.warps} s{tiles.stages}{parts}"
