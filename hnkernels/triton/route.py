"""Who computes a product: one of our kernels, or the vendor's library with what follows in a launch of its own.

By the model of ``cost.py``, product by product: the library where it saves a twentieth, all launches and passes over
memory included, and the time that the host needs for more calls; what autotune has timed, by that. ``HNKERNELS_ROUTE``,
read once, forces one of both: ``kernels``, or ``vendor`` wherever the library can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from hnkernels.errors import InputError
from hnkernels.triton import cost
from hnkernels.triton.autotune import kept
from hnkernels.triton.target import Target, asked_route
from hnkernels.triton.tiling import HALF, KINDS, WORTH_A_LAUNCH, Tiles, by_model, heuristic, modelled, proven

ROUTES = ("auto", "kernels", "vendor")

CALL = 2e-6
"""Seconds that a launch more is charged besides its cost on the card: the host makes it, and may not be ahead."""


class Route(NamedTuple):
    """Whether the vendor's library computes a product, and why or why not; nothing where there was no choice."""

    vendor: bool
    why: str = ""


def wanted() -> str:
    """The route that is asked for.

    Raises:
        ValueError: ``HNKERNELS_ROUTE`` is none of ``ROUTES``.
    """
    route = asked_route()
    if route not in ROUTES:
        raise InputError(f"HNKERNELS_ROUTE={route!r} is unknown; accepted are {', '.join(ROUTES)}")
    return route


def route(
    kind: str,
    M: int,
    N: int,
    K: int,
    dtype: torch.dtype,
    target: Target,
    tiles: Tiles,
    products: Sequence[tuple[int, int, int]],
    moved: int = 0,
    launches: int = 0,
    beside: int = 0,
    act: str = "linear",
) -> Route:
    """The route of a product of K and V; see ``tiling.modelled`` for its shape.

    Args:
        kind, M, N, K, tiles: of our kernel.
        products: M, N and K of what the library would multiply instead.
        moved: elements that are then read and written besides, in so many launches.
        beside: elements that our kernel's epilogue moves besides its result.
        act: the activation in it, by the device's name.
    """
    asked = wanted()
    if asked != "auto":
        return Route(asked == "vendor", f"HNKERNELS_ROUTE={asked}")
    if dtype not in HALF or kind not in proven(target.name):
        return Route(False)
    ours = by_kernel(kind, M, N, K, target, tiles, cost.epilogue(act, "backward" in kind), beside)
    theirs, how = by_library(products, target), "modelled"
    measured = None if kind == "input gradient" else kept(KINDS[kind][0], M, N, K, dtype, target)
    if measured is not None:  # without an epilogue
        ours += measured.kernel - by_kernel(kind, M, N, K, target, tiles)
        theirs, how = measured.library, "measured"
    theirs += passes(moved, launches, target)
    calls = CALL * (len(products) + launches - 1)
    return Route(
        WORTH_A_LAUNCH * theirs + calls < ours, f"kernel {ours * 1e6:.1f} µs, library {theirs * 1e6:.1f}, {how}"
    )


def norm_alone(M: int, N: int, K: int, above: int, dtype: torch.dtype, target: Target) -> bool:
    """Whether a LayerNorm over [M, N] is to have launches of its own in a training step of K and V, so that the library
    may compute the products around it: the one before it has depth K, the one after it so many columns."""
    asked = wanted()
    if asked != "auto":
        return asked == "vendor"
    if dtype not in HALF or not proven(target.name):
        return False
    M, N, K, above = _rounded(M), int(N), int(K), int(above)  # numbers, where PyTorch traces with symbols
    folded = [
        ("layer", M, N, K), ("layer", M, above, N), ("backward", M, N, above), ("normalising gradient", M, above, N)
    ]  # fmt: skip
    apart = [
        ("light layer", M, N, K), ("light layer", M, above, N), ("light backward", M, N, above),
        ("gradient", M, above, N),
    ]  # fmt: skip
    together = sum(_kernel(*shape, target) for shape in folded) + passes(2 * N * above, 1, target)
    alone = sum(by_best(*shape, target) for shape in apart) + passes(2 * 6 * M * N, 2, target) + CALL
    return WORTH_A_LAUNCH * alone < together


def _rounded(rows: int) -> int:
    """The next power of two, by comparisons: a compiled model whose rows vary then has a variant for each of them."""
    power = 1
    while power < rows:
        power *= 2
    return power


def by_best(
    kind: str,
    M: int,
    N: int,
    K: int,
    target: Target,
    operations: float = cost.EPILOGUE,
    most_splits: int = 1,
    after: int = 0,
) -> float:
    """How long a product takes by whoever is faster; after the library's, a launch moves so many elements, if any."""
    product = (N, K, M) if kind == "gradient" else (M, N, K)
    theirs = by_library([product] * 2, target) + passes(after, after > 0, target) + CALL * (1 + (after > 0))
    return min(_kernel(kind, M, N, K, target, operations, most_splits), theirs)


def _kernel(
    kind: str, M: int, N: int, K: int, target: Target, operations: float = cost.EPILOGUE, most_splits: int = 1
) -> float:
    product, fit = KINDS[kind]
    tiles = by_model(kind, M, N, K, target, most_splits) or heuristic(product, M, N, K, torch.float16, target)
    return by_kernel(kind, M, N, K, target, fit(tiles, 0, target), operations)


def by_kernel(
    kind: str,
    M: int,
    N: int,
    K: int,
    target: Target,
    tiles: Tiles,
    operations: float = cost.EPILOGUE,
    beside: int = 0,
) -> float:
    """How long our kernel takes by the model, launch included, in seconds; see ``tiling.modelled``."""
    return cost.LAUNCH + cost.FIRST_LOAD + modelled(kind, tiles, M, N, K, target, operations, beside)


def by_library(products: Sequence[tuple[int, int, int]], target: Target) -> float:
    """How long the vendor's library takes for products of M, N and K, one launch each."""
    return sum(
        cost.LAUNCH
        + cost.FIRST_LOAD
        + max(cost.vendor_seconds((1, M, N, K), target.name), cost.moving(M * N + M * K + N * K, target))
        for M, N, K in products
    )


def passes(moved: int, launches: int, target: Target) -> float:
    """How long so many launches take that do nothing but read and write so many elements in all."""
    return launches * (cost.LAUNCH + cost.FIRST_LOAD) + cost.moving(moved, target)
