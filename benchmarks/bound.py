"""The compulsory lower bound: what no way of computing it can go below.

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
change with every step, so that composing them is no gain. Backward may find every intermediate value kept, and reads
none of them; with recomputation it keeps X alone and computes the hidden pre-activations once more, 4Mdh FLOPs, and
before a LayerNorm at the end the output too, 4Mdh. Kept for backward is X; allocated at once are at least the results.

A linear W [n, d] with factors A_s [r, d] and B_s [n, r] per sample s of S, with T tokens each: the linear's 2STnd and
the smaller of 2STr(n + d) and the 2Srnd of writing B_s A_s into the weight of every sample; backward 2STnd for dx
and 2STr(2n + d) for the factors, all slices p of one x together.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.shapes import Layers, Samples
from hnkernels.accounting.eager import Account
from hnkernels.triton.launch import Launch

ELEMENT = 2
"""Bytes, in fp16 and bf16."""


def bounds(shape: Layers | Samples) -> dict[str, Account]:
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
