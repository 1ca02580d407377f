"""How the cost grows: with tokens, width, rows, networks and layers. What it should grow like stands in ``AXES``."""

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
        expected: provider → exponent of the cost.
        extra: whether the cost is what is added to the bare model's.
    """

    what: str
    values: Mapping[str, tuple[int, ...]]
    build: Callable[[int, Place], Sides]
    expected: Mapping[str, float]
    extra: bool = False


def _layer(tokens: int, width: int) -> Callable[[Place], Sides]:
    return lambda place: projection.sides(projection.Layer(width, tokens, width), place, training=False)


def _layers(**changes: Any) -> Callable[[Place], Sides]:
    shape = attention.Layers(**{"name": "", "channels": attention.SD15.channels, "width": 768, **changes})
    return lambda place: attention.sides(shape, place, "new prompt", compiled=False)


TOKENS = (64, 256, 1024, 4096, 16384)
WIDTHS = (320, 640, 768, 1024, 1280, 2048)
AXES = {
    "tokens": Axis("tokens of a layer 320 wide", {"cpu": TOKENS, "cuda": TOKENS},
                   lambda n, place: _layer(n, 320)(place), {"reference": 1, "ours": 1}),
    "width": Axis("width of a layer of 256 tokens (GPU: 4096)", {"cpu": WIDTHS, "cuda": WIDTHS},
                  lambda n, place: _layer(256 if place.kind == "cpu" else 4096, n)(place), {"reference": 2, "ours": 2}),
    "rows": Axis("rows of a batch, 16 cross-attention layers", {"cpu": (1, 2, 4, 8), "cuda": (1, 2, 4, 8, 16)},
                 lambda n, place: _layers(rows=n)(place), {"reference": 1, "ours": 1}),
    "networks": Axis("networks on 16 cross-attention layers", {"cpu": (1, 2, 4, 8), "cuda": (1, 2, 4, 8)},
                     lambda n, place: _layers(networks=n)(place), {"reference": 1, "ours": 1}, extra=True),
    "layers": Axis("cross-attention layers of 640 channels", {"cpu": (2, 4, 8, 16, 32), "cuda": (4, 8, 16, 32, 64)},
                   lambda n, place: _layers(channels=(640,) * n)(place), {"reference": 1, "ours": 0}, extra=True),
}  # fmt: skip
"""Sharing the text makes the last of ours 0: further layers add nothing to a network's cost."""


def _register(name: str, axis: Axis) -> None:
    @benchmark(f"scaling: {name}", modes=("new prompt" if axis.extra or name == "rows" else "inference",), seconds=1.5,
               providers=("reference", "portable", "triton", "bare"), shapes=axis.values)  # fmt: skip
    def scaling(value: int, place: Place, mode: str) -> Sides:
        return axis.build(value, place)


for _name, _axis in AXES.items():
    _register(_name, _axis)
