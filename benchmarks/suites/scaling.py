"""How the cost grows: with tokens, width, rows, networks and layers, beside how the arithmetic does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.place import Place
from benchmarks.registry import Sides, benchmark
from benchmarks.suites import attention, projection


@dataclass(frozen=True)
class Axis:
    """A quantity that is varied.

    Attributes:
        what: how it reads.
        values: on a CPU and on a GPU.
        build: from a value and a place to the ways.
        work: ``"reference"``, ``"ours"`` → from a value to the arithmetic, in any unit: the cost should grow like it.
        mode: what is timed.
    """

    what: str
    values: Mapping[str, tuple[int, ...]]
    build: Callable[[int, Place], Sides]
    work: Mapping[str, Callable[[int], float]]
    mode: str = "new prompt"


TOKENS = (64, 256, 1024, 4096, 16384)
WIDTHS = (320, 640, 768, 1024, 1280, 2048)
WIDTH = 768
"""Of a text, whose cross-attention layers are 16 where their number is not varied."""


def _layer(tokens: int, width: int, place: Place) -> Sides:
    return projection.sides(projection.Layer(width, tokens, width), place, "inference")


def _layers(place: Place, **changes: Any) -> Sides:
    shape = attention.Layers(**{"name": "", "channels": attention.SD15.channels, "width": WIDTH, **changes})
    return attention.sides(shape, place, "new prompt", compiled=False)


def _work(layers: int, channels: int, networks: int, evaluations: int) -> float:
    """FLOPs per token and column of the text: ``[1, 2, 1]`` networks for K and V, so often, and the projections."""
    return 16 * WIDTH * networks * evaluations + 4 * layers * channels


_MEAN = sum(attention.SD15.channels) // len(attention.SD15.channels)
_CHANNELS = 640

AXES = {
    "tokens": Axis(
        "tokens of a layer 320 wide", {"cpu": TOKENS, "cuda": TOKENS}, lambda n, place: _layer(n, 320, place),
        {"reference": float, "ours": float}, mode="inference",
    ),
    "width": Axis(
        "width of a layer of 256 tokens (GPU: 4096)", {"cpu": WIDTHS, "cuda": WIDTHS},
        lambda n, place: _layer(256 if place.kind == "cpu" else 4096, n, place),
        {"reference": lambda n: n**2, "ours": lambda n: n**2}, mode="inference",
    ),
    "rows": Axis(
        "rows of a batch, 16 cross-attention layers", {"cpu": (1, 2, 4, 8), "cuda": (1, 2, 4, 8, 16)},
        lambda n, place: _layers(place, rows=n), {"reference": float, "ours": float},
    ),
    "networks": Axis(
        "networks on 16 cross-attention layers", {"cpu": (1, 2, 4, 8), "cuda": (1, 2, 4, 8)},
        lambda n, place: _layers(place, networks=n),
        {"reference": lambda n: _work(16, _MEAN, n, 16), "ours": lambda n: _work(16, _MEAN, n, 1)},
    ),
    "layers": Axis(
        "cross-attention layers of 640 channels", {"cpu": (2, 4, 8, 16, 32), "cuda": (4, 8, 16, 32, 64)},
        lambda n, place: _layers(place, channels=(_CHANNELS,) * n),
        {"reference": lambda n: _work(n, _CHANNELS, 1, n), "ours": lambda n: _work(n, _CHANNELS, 1, 1)},
    ),
}  # fmt: skip


def _register(name: str, axis: Axis) -> None:
    @benchmark(f"scaling: {name}", modes=(axis.mode,), providers=("reference", "portable", "triton", "bare"),
               shapes=axis.values, seconds=1)  # fmt: skip
    def scaling(value: int, place: Place, mode: str) -> Sides:
        return axis.build(value, place)


for _name, _axis in AXES.items():
    _register(_name, _axis)
