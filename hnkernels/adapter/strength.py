"""How strong a network is, and where: a number, or a table of blocks, attention kinds, streams and layers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hnkernels.errors import InputError
from hnkernels.wording import shown

STREAMS = ("k", "v")
PROJECTIONS = ("q", *STREAMS, "out")

_GREATEST = torch.finfo(torch.float32).max

Value = float | tuple[float, ...]
"""A strength, or one for each of as many equal parts of the batch."""

# Halves of a UNet by the names of their blocks: diffusers', and those of the original repositories.
_HALVES = {"down": ("down_blocks", "input_blocks"), "up": ("up_blocks", "output_blocks")}
_MIDDLES = ("mid_block", "middle_block")

_ACCEPTED = (
    "accepted are down, mid, up and inside these block_<n>, attn1, attn2, k, v, and patterns of layer names such as "
    "'down_blocks.1.*'"
)


class PerRow:
    """Different strengths within one batch: as many equal parts, in order, as there are values.

    Under classifier-free guidance a pipeline puts all unconditional rows before the conditional ones, so that
    ``PerRow(0, 1)`` leaves the unconditional half to the base model. While a diffusers pipeline runs, an even number of
    values is for these two halves, whatever it does: without guidance the second half of the values is for all that
    there is, and where other kinds of guidance add rows, each has the values of its prompt's half. (A model compiled
    as a whole takes the values for equal parts of what comes in.)
    """

    def __init__(self, *values: float):
        if not values:
            raise InputError("PerRow needs at least one strength")
        self.values = tuple(map(_number, values))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PerRow) and other.values == self.values

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return f"PerRow({', '.join(f'{v:g}' for v in self.values)})"


Strength = float | PerRow | Mapping[str, Any]
"""A number; one per part of the batch; or a table of these.

A table's keys are ``down``, ``mid``, ``up`` (parts of the UNet), inside these ``block_0``, ``block_1`` …, anywhere
``attn1``, ``attn2``, ``k``, ``v``, and patterns of layer names. Its values are strengths again; for a block, as in
diffusers, also a list with one per attention module. Where several keys fit a layer their strengths multiply; where
none does it is 1.
"""


class Place(NamedTuple):
    """Where a layer is: what the keys of a table are compared with."""

    name: str
    kind: str
    half: str | None
    block: int | None
    transformer: int | None

    @staticmethod
    def of(name: str, kind: str) -> Place:
        """That of the attention layer with this dotted path."""
        inside = re.search(r"\.attentions\.(\d+)(?:\.|$)", f".{name}")
        transformer = int(inside.group(1)) if inside else None
        for half, blocks in _HALVES.items():
            found = re.search(rf"(?:^|\.)(?:{'|'.join(blocks)})\.(\d+)\.", name)
            if found:
                return Place(name, kind, half, int(found.group(1)), transformer)
        middle = any(part in _MIDDLES for part in name.split("."))
        return Place(name, kind, "mid" if middle else None, None, transformer)

    def fits(self, key: str, stream: str) -> bool:
        """Whether a key of a table speaks of this layer and stream (or projection)."""
        if key in ("down", "mid", "up"):
            return key == self.half
        if key in ("attn1", "attn2"):
            return key == self.kind
        if key in PROJECTIONS:
            return key == stream
        if re.fullmatch(r"block_\d+", key):
            return self.half in _HALVES and key == f"block_{self.block}"
        return fnmatchcase(self.name, key)


class Resolved(NamedTuple):
    """The strength at one layer, by stream, and which entries of the table it comes from."""

    values: dict[str, Value]
    origin: tuple


def resolve(strength: Strength, places: Sequence[Place], streams: Sequence[str] = STREAMS) -> list[Resolved]:
    """The strength at every place.

    Raises:
        ValueError: something is not a strength, or a key of the table fits no place.
    """
    _check_keys(strength, [(place, stream) for place in places for stream in streams])
    resolved = []
    for place in places:
        found = {stream: _at(strength, place, stream, ()) for stream in streams}
        values = {stream: value for stream, (value, _) in found.items()}
        for value in values.values():
            for factor in value if isinstance(value, tuple) else (value,):
                _number(factor, f"the product of the strengths at {place.name}")
        resolved.append(Resolved(values, tuple(origin for _, origin in found.values())))
    return resolved


def _at(strength: Any, place: Place, stream: str, path: tuple) -> tuple[Value, tuple]:
    if isinstance(strength, Mapping):
        product: Value = 1.0
        origin: tuple = ()
        for key, inner in strength.items():
            if place.fits(key, stream):
                value, below = _at(inner, place, stream, (*path, key))
                product, origin = _times(product, value), (*origin, *below)
        return product, origin
    if isinstance(strength, PerRow):
        return strength.values if len(strength.values) > 1 else strength.values[0], (path,)
    if isinstance(strength, (list, tuple)):
        assert place.transformer is not None  # _check_keys has seen to it
        return float(strength[place.transformer]), ((*path, place.transformer),)
    return float(strength), (path,)


def _times(a: Value, b: Value) -> Value:
    if isinstance(a, tuple) or isinstance(b, tuple):
        a, b = (x if isinstance(x, tuple) else (x,) for x in (a, b))
        count = math.lcm(len(a), len(b))
        return tuple(a[i * len(a) // count] * b[i * len(b) // count] for i in range(count))
    return a * b


def _check_keys(strength: Any, spots: list[tuple[Place, str]], path: str = "strength") -> None:
    if isinstance(strength, Mapping):
        for key, inner in strength.items():
            here = [(p, s) for p, s in spots if isinstance(key, str) and p.fits(key, s)]
            if not here:
                raise InputError(f"{path} has the key {shown(key)}, which fits no attention layer here; {_ACCEPTED}")
            _check_keys(inner, here, f"{path}[{shown(key)}]")
    elif isinstance(strength, (list, tuple)):
        modules = {(p.half, p.block, p.transformer) for p, _ in spots}
        if len({module[:2] for module in modules}) != 1 or any(p.transformer is None for p, _ in spots):
            raise InputError(
                f"{path} is a list, which is for the attention modules of one block; for the rows of a batch give "
                f"PerRow({shown(list(strength))[1:-1]})"
            )
        if {transformer for *_, transformer in modules} != set(range(len(strength))):
            raise InputError(
                f"{path} has {len(strength)} entries and is about {len(modules)} attention modules; give one for each "
                "of a block"
            )
        for value in strength:
            _number(value, f"each entry of {path}")
    elif not isinstance(strength, PerRow):
        _number(strength, path, " a number, PerRow(…) or a table of these")


def _number(value: Any, path: str = "strength", accepted: str = " a number") -> float:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number:
        raise InputError(f"{path} must be{accepted}, not {shown(value)}")
    if not abs(value) <= _GREATEST:
        raise InputError(f"{path} must be finite, not {shown(value)}; the greatest is fp32's, 3.4e38")
    return float(value)


class Level:
    """A strength that some layers share, as numbers and, for compiled models, as tensors.

    A compiled graph reads the tensors when it runs; a number it would have built in.
    """

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}  # by stream
        self.tensors: dict[str, Tensor] = {}  # fp32, [] or [parts of the batch]

    def set(self, values: Mapping[str, Value], device: torch.device) -> None:
        """Takes new values. A tensor stays the same one as long as the batch has as many parts."""
        self.values = dict(values)
        with torch.inference_mode(False), torch.no_grad():
            for stream, value in values.items():
                fresh = torch.tensor(value, dtype=torch.float32, device="cpu")
                kept = self.tensors.get(stream)
                if kept is None or kept.device != device or kept.shape != fresh.shape:
                    self.tensors[stream] = fresh.to(device)
                else:
                    kept.copy_(fresh)

    def to(self, device: torch.device) -> None:
        """Brings the tensors to a device."""
        self.set(self.values, device)


def parts(value: Value | Tensor) -> int:
    """How many parts of the batch a strength tells apart."""
    if isinstance(value, Tensor):
        return value.shape[0] if value.ndim else 1
    return len(value) if isinstance(value, tuple) else 1
