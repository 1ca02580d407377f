"""The tiles and the route that the model chooses against those that are fastest here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch

from benchmarks.gpu_check.journal import FIGURE, SKIPPED, Finding
from benchmarks.gpu_check.session import Session, Task
from benchmarks.place import Place
from benchmarks.timing import cpu_seconds
from hnkernels.triton import autotune
from hnkernels.triton.cost import FIRST_LOAD, LAUNCH
from hnkernels.triton.kernels import linear, weight_gradient  # noqa: F401  # say how their products are timed
from hnkernels.triton.route import by_library
from hnkernels.triton.target import Target, target_of
from hnkernels.triton.tiling import PRODUCTS, Tiles, by_model, modelled, proven

PHASE = "tuned"

SHAPES = ((4096, 640, 320), (1024, 1280, 640), (1024, 2560, 1280), (4096, 1280, 640), (77, 1280, 768), (8192, 640, 320))
"""M, N and K of products, as ``tiling`` has them."""

KINDS = {"forward": "linear", "backward": "backward", "gradient": "gradient"}


def tasks(place: Place) -> Iterator[tuple[str, Task]]:
    """Every product of every shape; in the interpreter of a small one."""
    for shape in SHAPES if place.kind == "cuda" else ((20, 16, 16),):
        for product in PRODUCTS:
            what = f"{product} {' x '.join(map(str, shape))}"
            yield what, partial(_tune, what, product, *shape)


def _tune(what: str, product: str, M: int, N: int, K: int, session: Session) -> Iterator[Finding]:
    target, dtype = target_of(session.place.device), torch.float16
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, HNKERNELS_CACHE=folder):
        found = autotune.tune(product, M, N, K, dtype, target, _timer(session))
    yield Finding(PHASE, f"{what}: fastest", FIGURE, found.kernel, "s", _text(found.tiles))
    yield Finding(PHASE, f"{what}: the vendor's library", FIGURE, found.library, "s")
    yield from _against_the_model(what, KINDS[product], (M, N, K), found, target)


def _against_the_model(
    what: str, kind: str, shape: tuple[int, int, int], found: autotune.Measured, target: Target
) -> Iterator[Finding]:
    chosen = by_model(kind, *shape, target)
    if chosen is None:
        yield Finding(PHASE, f"{what}: by the model", SKIPPED, note=f"it has no tiles for {target.name}")
        return
    here = LAUNCH + FIRST_LOAD
    M, N, K = shape
    multiplied = (N, K, M) if kind == "gradient" else shape
    for who, seconds, predicted in (
        ("fastest tiles", found.kernel, here + modelled(kind, found.tiles, *shape, target)),
        ("the vendor's library", found.library, by_library([multiplied] * 2, target)),
    ):
        yield Finding(PHASE, f"{what}: {who}, measured / modelled", FIGURE, seconds / predicted, "x")
    same = "the same" if chosen == found.tiles else f"{_text(chosen)} instead of {_text(found.tiles)}"
    fit = len(proven(target.name).get(kind, {}))
    yield Finding(PHASE, f"{what}: by the model", FIGURE, note=f"{same}, of {fit}")


def _timer(session: Session) -> autotune.Timer:
    return cpu_seconds_of if session.rehearsed else autotune.median_seconds


def cpu_seconds_of(run: Callable[[], object]) -> float:
    """Of one run, by the clock on the wall."""
    return cpu_seconds([run])


def _text(tiles: Tiles) -> str:
    return f"{tiles.block_m}x{tiles.block_n}x{tiles.block_k} w{tiles.warps} s{tiles.stages}"
