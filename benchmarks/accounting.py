"""``python -m benchmarks.accounting``: counts all shapes, writes benchmarks/results/any/counted.csv, prints the tables.

Takes about a minute, nearly all of it for compiling the reference. What every provider does is known by ``counting``;
here it stands beside the compulsory lower bound, which no way of computing it can go below.

Of every pass each input is read once, each result is written once, the products are the fewest that give the result,
and one launch does it all. Where two algebras give one result, every quantity is that of the one that needs less of it.

K and V of layers g with projections W_g [n_g, d] over a context X [M, d], with one MLP each for K and V of hidden width
h, of P = 2dh + h + d elements (and 2h + 2d more with LayerNorm), e bytes per element; N = Σ n_g:

========== =========================================== =============================================================
pass       FLOPs                                       elements in and out
========== =========================================== =============================================================
inference  4Mdh + 4Mdh + 4MdN                          Md + 2P + 2dN and 2MN
           composed: 4Mdh + 4MhN + 4MdN                Md + 2(dh + h) + 2(d + h + 1)N and 2MN
           affine: 4MdN                                Md + 2(d + 1)N and 2MN
forward    8Mdh + 4MdN                                 Md + 2P + 2dN and 2MN
backward   4MdN + 12Mdh, + 4Mdh for dX                 2MN + Md + 2dh + 2dN (+ 2dh for dX, + γ) and 2P (+ Md for dX)
step       those of forward and backward               Md + 2P + 2dN + 2MN and 2MN + 2P (+ Md for dX)
========== =========================================== =============================================================

``inference`` composes where nothing follows the last linear; a training step has frozen projections, but weights that
change with every step, so that composing them gains nothing. Backward may find every intermediate value kept, and reads
none of them; with recomputation it keeps X alone and computes the hidden pre-activations once more, 4Mdh FLOPs, and
before a LayerNorm at the end the output too, 4Mdh. Kept for backward is X; allocated at once are at least the results.

A linear W [n, d] with factors A_s [r, d] and B_s [n, r] per sample s of S, with T tokens each: the linear's 2STnd and
the smaller of 2STr(n + d) and the 2Srnd of writing B_s A_s into the weight of every sample; backward 2STnd for dx
and 2STr(2n + d) for the factors, all slices p of one x together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import triton

from benchmarks import counting
from benchmarks.counting import Accounts
from benchmarks.rows import RESULTS, Row, select, stamped, write
from benchmarks.shapes import (
    LAYERS,
    NETWORKS,
    PAIR,
    PROMPT,
    SAMPLES,
    SD15,
    SD15_TEXT,
    SDXL_TEXT,
    TEXTS,
    Network,
    Samples,
    Shape,
)  # fmt: skip
from hnkernels.accounting.eager import Account
from hnkernels.triton.launch import Launch

FILE = RESULTS / "any" / "counted.csv"

COUNTED: tuple[Shape, ...] = (
    *(layer.of(network) for network in NETWORKS for layer in LAYERS),
    SD15_TEXT, SDXL_TEXT,
    SAMPLES[0], Samples(320, 1024, (320, 320, 320)), SAMPLES[1], Samples(768, PROMPT, (640, 640)),
)  # fmt: skip

UNITS = {"launches": "1", "flops": "FLOP", "bytes": "B", "saved": "B", "peak": "B"}

_HEADINGS = {"launches": ("launches", 1), "flops": ("GFLOP", 1e9), "bytes": ("MB moved", 1e6),
             "saved": ("MB saved", 1e6), "peak": ("MB at once", 1e6)}  # fmt: skip

ELEMENT = 2
"""Bytes, in fp16 and bf16."""


def named(shape: Shape) -> tuple[str, str]:
    """Benchmark and shape, as rows of what is counted have them."""
    size = f"{shape.width} x {shape.tokens}"
    if isinstance(shape, Samples):
        return "lowrank", size + {1: "", 2: ", k v", 3: ", q k v"}[len(shape.outs)]
    if len(shape.outs) == 1:
        return f"projection, {shape.network.name}", size
    return f"cross attention, {shape.network.name}", f"{len(shape.outs)} layers, {size}"


SHAPE = named(PAIR)[1]
"""K and V of one attention layer of Stable Diffusion 1.x, two pictures of 512 pixels at once."""

OF_NETWORKS = ("relu", "silu", "relu + LayerNorm", "silu + LayerNorm")

_NORMED = Network("silu", True)
SUMMARISED = tuple(map(named, (SD15[0], SD15[0].of(_NORMED), SD15[2].of(_NORMED), TEXTS[0], SD15_TEXT, SAMPLES[0])))
"""Benchmark and shape of what docs/benchmarks.md shows."""


def bounds(shape: Shape) -> dict[str, Account]:
    """The bounds of every pass by name, in fp16, at a shape of the table."""
    if isinstance(shape, Samples):
        return lowrank(shape.samples, shape.tokens, shape.width, shape.outs, shape.rank)
    network = shape.network
    return projections(
        shape.tokens, shape.width, 2 * shape.width, shape.outs, layer_norm=network.layer_norm,
        affine=network.activation is None, input_gradient=not shape.text,
    )  # fmt: skip


def projections(
    tokens: int,
    width: int,
    hidden: int,
    outs: Sequence[int],
    *,
    layer_norm: bool = False,
    affine: bool = False,
    input_gradient: bool = True,
) -> dict[str, Account]:
    """The bounds of every pass by name; the letters of the table are tokens M, width d, hidden h, outs n_g."""
    m, d, h, n = tokens, width, hidden, sum(outs)
    product, projected = 4 * m * d * h, 4 * m * d * n
    p = 2 * d * h + h + d + layer_norm * (2 * h + 2 * d)
    results = 2 * m * n
    read = m * d + 2 * p + 2 * d * n
    flops, least = 2 * product + projected, read
    if not layer_norm:
        flops = min(flops, product + 4 * m * h * n + projected)
        least = min(least, m * d + 2 * (d * h + h) + 2 * (d + h + 1) * n)
    if affine:
        return {"inference": _bound(projected, m * d + 2 * (d + 1) * n, results, results)}
    forward, dx = 2 * product + projected, m * d if input_gradient else 0
    backward = projected + (3 + input_gradient) * product
    gammas = 2 * layer_norm * (h + d)
    needed = results + m * d + (1 + input_gradient) * 2 * d * h + 2 * d * n + gammas
    gradients = 2 * p + dx
    again = (1 + layer_norm) * product
    step = (read + results, results + gradients, max(results, gradients), m * d)
    return {
        "inference": _bound(flops, least, results, results),
        "forward": _bound(forward, read, results, results, m * d),
        "backward": _bound(backward, needed, gradients, gradients),
        "forward + backward": _bound(forward + backward, *step),
        "recompute": _bound(forward + backward + again, *step),
    }


def lowrank(samples: int, tokens: int, width: int, outs: Sequence[int], rank: int) -> dict[str, Account]:
    """The bounds of every pass by name, of linears with low-rank weights per sample that read one x."""
    m, d, n, slices = samples * tokens, width, sum(outs), len(outs)
    factors = samples * rank * (slices * d + n)
    shared = m * d + n * d + factors
    apart, merged = 2 * m * rank * (slices * d + n), 2 * samples * rank * n * d
    forward = 2 * m * n * d + min(apart, merged)
    backward = 2 * m * n * d + 2 * m * rank * (2 * n + slices * d)
    gradients, results = m * d + factors, m * n
    scales = 2 * samples  # fp32, counted in fp16's elements
    kept = m * d + factors
    return {
        "inference": _bound(forward, shared + scales, results, results),
        "forward": _bound(forward, shared + scales, results, results, kept),
        "backward": _bound(backward, shared + scales + results, gradients, gradients),
        "forward + backward": _bound(
            forward + backward, shared + scales + results, results + gradients, max(results, gradients), kept
        ),
    }


def _bound(flops: int, read: int, written: int, peak: int, saved: int = 0) -> Account:
    """In elements."""
    launch = Launch("bound", 1, None, flops, read * ELEMENT, written * ELEMENT)
    return Account((launch,), peak * ELEMENT, saved * ELEMENT)


def count(chosen: Sequence[Shape] = COUNTED, compiled: bool = True) -> list[Row]:
    """The figures of all shapes, or of some, by all providers and of the bound; ``torch.compile``'s only if wanted."""
    rows: list[Row] = []
    for shape in chosen:
        names = [*counting.providers(shape), *(["compile"] if compiled and counting.compilable(shape) else [])]
        everyone = {name: counting.accounts(shape, name, recompute=True) for name in names}
        counted = {mode for accounts in everyone.values() for mode in accounts}
        everyone["bound"] = {mode: account for mode, account in bounds(shape).items() if mode in counted}
        for provider, accounts in everyone.items():
            rows += _rows(shape, provider, accounts)
    return on_any_machine(rows)


def on_any_machine(rows: Sequence[Row]) -> list[Row]:
    """The rows with what they depend on."""
    return stamped(rows, "any", f"torch {torch.__version__}, triton {triton.__version__}", "")


def quantities(account: Account, mode: str) -> dict[str, int]:
    """What is said of an account, by name: what is saved of passes that save, and a peak where it is known."""
    figures = {"launches": len(account.launches), "flops": account.flops, "bytes": account.bytes_moved}
    if mode not in ("inference", "backward"):
        figures["saved"] = account.saved
    if account.peak:
        figures["peak"] = account.peak
    return figures


def markdown(rows: Iterable[Row]) -> list[str]:
    """A table per benchmark of what is counted: every figure, and in brackets how many times the bound it is."""
    tables: dict[str, dict[tuple[str, str, str], dict[str, Row]]] = {}
    for row in select(rows, kind="counted"):
        lines = tables.setdefault(row.benchmark, {})
        lines.setdefault((row.shape, row.mode, row.provider), {})[row.quantity] = row
    text = ["Counted, not measured; in brackets the ratio to the compulsory lower bound."]
    for benchmark, lines in tables.items():
        headings = " | ".join(heading for heading, _ in _HEADINGS.values())
        text += ["", f"### {benchmark}", "", f"| shape | mode | provider | {headings} |", "| --- " * 8 + "|"]
        for (shape, mode, provider), figures in lines.items():
            bounds = lines[shape, mode, "bound"]
            cells = [_cell(figures.get(name), bounds.get(name), name) for name in _HEADINGS]
            text.append(f"| {shape} | {mode} | {provider} | {' | '.join(cells)} |")
    return text


def launches(rows: Sequence[Row]) -> list[str]:
    """The kernels against the web UIs' way in eager PyTorch, at one shape."""
    lines = [
        "| network `[1, 2, 1]` | launches: inference | forward | backward | bytes moved by a training step "
        "| bytes saved for backward | most bytes at once |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for network in OF_NETWORKS:
        found = {
            (row.provider, row.mode, row.quantity): row.value
            for row in select(rows, benchmark=f"projection, {network}", shape=SHAPE, kind="counted")
        }
        if not found:
            continue
        counts = [
            f"{found['triton', mode, 'launches']:.0f} ({'eager ' if mode == 'inference' else ''}"
            f"{found['reference', mode, 'launches']:.0f})"
            for mode in ("inference", "forward", "backward")
        ]
        step = "forward + backward"
        ratios = [
            f"{found['triton', step, q] / found['reference', step, q]:.2f} of eager's"
            for q in ("bytes", "saved", "peak")
        ]
        lines.append(f"| {network} | {' | '.join([*counts, *ratios])} |")
    return lines


def _cell(row: Row | None, bound: Row | None, name: str) -> str:
    if row is None:
        return "–"
    size = row.value / _HEADINGS[name][1]
    figure = f"{size:.0f}" if name == "launches" else f"{size:.3f}"
    return figure if bound is None or row is bound else f"{figure} ({row.value / bound.value:.2f})"


def _rows(shape: Shape, provider: str, accounts: Accounts) -> list[Row]:
    benchmark, size = named(shape)
    return [
        Row("counted", benchmark, mode, size, "fp16", provider, quantity, float(value), UNITS[quantity])
        for mode, account in accounts.items()
        for quantity, value in quantities(account, mode).items()
    ]


if __name__ == "__main__":
    found = count()
    write(found, FILE)
    print("\n".join(markdown(found)))
