"""Opt-in: tiles by measurement on the device at hand, kept on disk.

``HNKERNELS_AUTOTUNE=1`` times the candidates once per kind of product, shape, dtype and device, on scratch tensors, and
the vendor's library beside them. What is fastest, and how fast both are, is kept in ``HNKERNELS_CACHE`` (default
``~/.cache/hnkernels``). Never while a CUDA graph is captured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from hnkernels.triton import tiling
from hnkernels.triton.launch import tracing
from hnkernels.triton.target import Target, forced_route, target_of
from hnkernels.triton.tiling import Tiles

Timer = Callable[[Callable[[], object]], float]
"""Runs a launch some times and returns the time of one, in seconds."""

Runner = Callable[[Tensor, Tensor], object]
"""Launches a product of its kind: of x and weight, or of the gradient da and h."""

_runners: dict[str, Runner] = {}


class Measured(NamedTuple):
    """What was found out about a product: our fastest tiles, and how many seconds they take, and the library."""

    tiles: Tiles
    kernel: float
    library: float


_known: dict[Path, dict[str, Measured]] = {}


def enabled() -> bool:
    """Whether the user asked for it."""
    return os.environ.get("HNKERNELS_AUTOTUNE", "0") == "1"


def cache_file() -> Path:
    """Where the results are kept."""
    return Path(os.environ.get("HNKERNELS_CACHE", Path.home() / ".cache" / "hnkernels")) / "tiles.json"


def kept(kind: str, M: int, N: int, K: int, dtype: torch.dtype, target: Target) -> Measured | None:
    """What was measured for this product, now or earlier; ``None`` where measuring is not wanted or not possible."""
    if not enabled() or target.backend == "interpreter" or not torch.cuda.is_available():
        return None
    if target != target_of(torch.device("cuda", torch.cuda.current_device())):
        return None  # planned for another device
    measured = _load().get(_key(kind, M, N, K, dtype, target))
    if measured is None and not torch.cuda.is_current_stream_capturing():
        measured = tune(kind, M, N, K, dtype, target, median_seconds)
    return measured


def runs(kind: str) -> Callable[[Runner], Runner]:
    """Registers the decorated function as what a product of this kind is measured by."""

    def register(runner: Runner) -> Runner:
        _runners[kind] = runner
        return runner

    return register


def choose(
    kind: str, M: int, N: int, K: int, dtype: torch.dtype, target: Target, block_r: int = 0, splits: int = 1
) -> Tiles:
    """The tiles for a product [M, K] × [K, N], or for a weight gradient [N, K] summed over M tokens.

    ``block_r`` is what the ranks are filled up to in a low-rank one; ``splits``, into how many parts K may be cut.
    """
    product, fit = tiling.KINDS[kind]
    half = dtype in tiling.HALF
    measured = None if tiling.forced_tiles() else kept(product, M, N, K, dtype, target)
    tiles = (
        tiling.forced_tiles()
        or (measured.tiles if measured else None)
        or (tiling.by_model(kind, M, N, K, target, splits) if half else None)
        or tiling.heuristic(product, M, N, K, dtype, target)
    )  # fmt: skip
    return fit(tiles, block_r, target)


def candidates(product: str, target: Target) -> Sequence[Tiles]:
    """The tiles to be timed: those that ``proven.csv`` has for every kind of kernel that takes this product's, or all
    that are compiled where it has none."""
    proven = tiling.proven(target.name)
    kinds = [proven[kind] for kind, (of, _) in tiling.KINDS.items() if of == product and kind in proven]
    shared = [tiles for tiles in kinds[0] if all(tiles in kind for kind in kinds)] if kinds else []
    return shared or tiling.candidates(product, target)


def tune(kind: str, M: int, N: int, K: int, dtype: torch.dtype, target: Target, timer: Timer) -> Measured:
    """Times the candidates and keeps the fastest. One that does not compile or fit is passed over.

    Raises:
        RuntimeError: none of them runs.
    """
    with _disable_current_modes(), tracing(None):  # whatever asks for tiles may be tracing
        device = "cpu" if target.backend == "interpreter" else "cuda"
        generator = torch.Generator(device).manual_seed(0)  # dropout's must not notice
        x = torch.empty(M, N if kind == "gradient" else K, device=device, dtype=dtype).normal_(generator=generator)
        shape = {"forward": (N, K), "backward": (K, N), "gradient": (M, K)}[kind]
        other = torch.empty(shape, device=device, dtype=dtype).normal_(generator=generator)
        times: dict[Tiles, float] = {}
        for tiles in candidates(kind, target):
            with tiling.forced(tiles), forced_route("kernels"):
                try:
                    times[tiles] = timer(lambda: _runners[kind](x, other))
                except Exception as fault:  # out of registers or shared memory: each backend says it in its own way
                    last = fault
        if not times:
            raise RuntimeError(f"no tiling runs {kind} {M}x{N}x{K} in {dtype} on {target.name}") from last
        best = min(times, key=times.__getitem__)
        with tiling.forced(best), forced_route("vendor"):  # forced too, so that nobody asks for tiles once more
            library = timer(lambda: _runners[kind](x, other))
    measured = _load()[_key(kind, M, N, K, dtype, target)] = Measured(best, times[best], library)
    _save()
    return measured


def _key(kind: str, M: int, N: int, K: int, dtype: torch.dtype, target: Target) -> str:
    # Rows by powers of two: prompts and resolutions differ, the best tiles hardly.
    return f"{kind} {1 << max(M - 1, 0).bit_length()}x{N}x{K} {dtype} {target.name}x{target.processors}"


def median_seconds(run: Callable[[], object]) -> float:
    """The timer for a GPU: with its cache emptied before each run."""
    from triton.testing import do_bench

    return 1e-3 * do_bench(run, return_mode="median")


def _load() -> dict[str, Measured]:
    file = cache_file()
    if file not in _known:
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
            _known[file] = {
                key: Measured(Tiles(**row["tiles"]), float(row["kernel"]), float(row["library"]))
                for key, row in rows.items()
            }
        except (OSError, ValueError, TypeError, AttributeError, KeyError):  # none yet, or not ours: measure again
            _known[file] = {}
    return _known[file]


def _save() -> None:
    file = cache_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = {key: {**m._asdict(), "tiles": asdict(m.tiles)} for key, m in _load().items()}
    text = json.dumps(rows, indent=1, sort_keys=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
