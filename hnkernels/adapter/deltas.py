"""What weight hypernetworks add to a model's linears: generated low-rank weights, and which rows they serve."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hnkernels.adapter.layers import AdapterError
from hnkernels.adapter.strength import Level, Value, parts
from hnkernels.ops.lowrank import lowrank_add, lowrank_linear, lowrank_linears, lowrank_runner
from hnkernels.ops.memo import version_of
from hnkernels.ops.portable import project


class State(NamedTuple):
    """The weights of one linear under one condition.

    Attributes:
        a, b: [G, r, d] and [G, n, r].
        scale: [G]; ``None`` is 1.
        serving: [S], which set serves which row; ``None`` where each serves as many consecutive rows.
        guidance: whether the first half of the batch is unconditional; ``None`` is for the pipeline to say.
        serial: another number for other weights.
    """

    a: Tensor
    b: Tensor
    scale: Tensor | None
    serving: Tensor | None
    guidance: bool | None
    serial: int


class Rows(NamedTuple):
    """The delta of one linear for a batch: what ``lowrank_linear`` takes.

    Attributes:
        a, b: the factors.
        scale: a number, [S] or ``None``.
        serving: [S] or ``None``, the index.
        token: changes whenever anything but the factors' values does.
    """

    a: Tensor
    b: Tensor
    scale: Tensor | float | None
    serving: Tensor | None
    token: Hashable


class Source(Protocol):
    """The adapter that a delta comes from."""

    enabled: bool

    def guided(self, guidance: bool | None) -> bool:
        """Whether the first half of the batch is unconditional."""


class WeightDelta:
    """What one weight adapter adds to the weight of one linear.

    It stays the same object under all conditions, whose tensors a compiled model reads from it.
    """

    def __init__(self, adapter: Source, projection: str):
        self.adapter = adapter
        self.projection = projection
        self.level: Level | None = None
        self.state: State | None = None
        self._rows: tuple[object, tuple] = (None, ())

    @property
    def strength(self) -> Value:
        """How strong it is now."""
        assert self.level is not None
        return self.level.values[self.projection]

    def acting(self, replay: Replay | None = None) -> State | None:
        """The weights that act: those of now, or those of a recorded call that is computed once more."""
        state = self.state if replay is None else replay.get(self)
        if state is None or not self.adapter.enabled:
            return None
        if torch.compiler.is_compiling():
            return state
        value = self.strength
        return state if (any(value) if isinstance(value, tuple) else value != 0) else None

    def rows(self, x: Tensor, state: State, strength: Value, guided: bool) -> Rows:
        """The delta for x [S, ..., d] with these weights at this strength; ``guided`` leaves the first half alone.

        Raises:
            AdapterError: the sets of weights cannot be told to the rows.
        """
        assert self.level is not None
        if torch.compiler.is_compiling():
            scale, index = _scale_and_index(state, self.level.tensors[self.projection], guided, x.shape[0])
            return Rows(state.a, state.b, scale, index, None)
        recorded = state.a.requires_grad and torch.is_grad_enabled()
        key: tuple = (state.serial, strength, guided, x.shape[0], x.device, recorded)
        if state.scale is not None or state.serving is not None:  # their values are in what is kept
            key = (*key, version_of([t for t in (state.scale, state.serving) if t is not None]))
        if state.scale is not None and state.scale.requires_grad and torch.is_grad_enabled():
            return Rows(state.a, state.b, *_scale_and_index(state, strength, guided, x.shape[0]), key)  # for one graph
        kept = self._rows  # read once: another thread may put others in their place
        if kept[0] != key:
            kept = self._rows = (key, _scale_and_index(state, strength, guided, x.shape[0]))
        scale, index = kept[1]
        return Rows(state.a, state.b, scale, index, key)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_rows": (None, ())}


class ActingDelta(NamedTuple):
    """A delta that acts, its weights, how strong they are, and whether half of the rows are left alone."""

    delta: WeightDelta
    state: State
    strength: Value
    guided: bool

    @staticmethod
    def of(delta: WeightDelta, state: State) -> ActingDelta:
        """As it is now."""
        return ActingDelta(delta, state, delta.strength, delta.adapter.guided(state.guidance))

    def rows(self, x: Tensor) -> Rows:
        """For x [S, ..., d]."""
        return self.delta.rows(x, self.state, self.strength, self.guided)


Deltas = tuple[ActingDelta, ...]

Replay = Mapping[WeightDelta, State | None]
"""What acted in one call of the model."""


class GroupedLinear(NamedTuple):
    """One of several linears that are computed together, and the deltas that act on it."""

    weight: Tensor
    bias: Tensor | None
    deltas: Deltas


def _scale_and_index(
    state: State, strength: Tensor | float | tuple[float, ...], guided: bool, rows: int
) -> tuple[Tensor | float | None, Tensor | None]:
    """The scale of every row and the set that serves it."""
    sets, device = state.a.shape[0], state.a.device
    served = sets if state.serving is None else len(state.serving)
    served *= 2 if guided else 1
    if not served or rows % served:
        kind = "rows of a batch under classifier-free guidance" if guided else "rows of a batch"
        raise AdapterError(
            f"{served} {kind} have generated weights, and a batch of {rows} has come in, no multiple; generate one set "
            "per picture, or say with weights.with_index(…) which set serves which row"
            + ("" if guided else "; under guidance give condition(…, guidance=True)")
        )
    if parts(strength) > 1 and rows % parts(strength):
        raise AdapterError(
            f"the strengths tell {parts(strength)} equal parts of a batch apart, and a batch of {rows} has come in"
        )
    each = rows // served
    plain = state.serving is None and not guided
    if plain and state.scale is None and not isinstance(strength, (Tensor, tuple)):
        return None if strength == 1 else strength, None
    if state.serving is None:
        index = torch.arange(rows // (2 if guided else 1), device=device) // each
    else:
        index = state.serving.repeat_interleave(each)
    scale = index.new_ones(len(index), dtype=torch.float32) if state.scale is None else state.scale[index]
    if guided:
        index, scale = torch.cat([index, index]), torch.cat([torch.zeros_like(scale), scale])
    level = strength if isinstance(strength, Tensor) else torch.tensor(strength, dtype=torch.float32)
    level = level.to(device)
    scale = scale * (level.repeat_interleave(rows // len(level)) if level.ndim else level)
    return scale, None if plain else index


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: Deltas) -> Tensor:
    """A linear with the deltas, at least one. Shape: x [S, ..., d] → [S, ..., n]."""
    rows = deltas[0].rows(x)
    y = lowrank_linear(x, weight, rows.a, rows.b, rows.scale, bias, index=rows.serving)
    return add(y, x, deltas[1:])


def add(y: Tensor, x: Tensor, deltas: Deltas) -> Tensor:
    """The output y of a linear of x, with the deltas."""
    for delta in deltas:
        rows = delta.rows(x)
        y = lowrank_add(y, x, rows.a, rows.b, rows.scale, index=rows.serving)
    return y


def runner(x: Tensor, linears: Sequence[GroupedLinear]) -> Callable[[Tensor], Sequence[Tensor]] | None:
    """What ``linear`` and ``grouped_linears`` run for linears of one x, of which one adapter changes each; ``None``
    for others, and where no plan can be kept. See ``lowrank_runner``."""
    if any(len(g.deltas) != 1 for g in linears) or len({id(g.deltas[0].delta.adapter) for g in linears}) > 1:
        return None
    weights, biases, deltas = zip(*linears, strict=True)
    a, b, scales, indices, _ = zip(*(acting.rows(x) for (acting,) in deltas), strict=True)
    return lowrank_runner(x, weights, a, b, scales, biases, indices[0])


def grouped_linears(linears: Sequence[tuple[Tensor, GroupedLinear]]) -> list[Tensor]:
    """The outputs of several linears, each of its x [S, ..., d]; those of one x read it together, where they can."""
    groups: dict[tuple[int, int], list[int]] = {}
    first = {i: g.deltas[0].rows(x) for i, (x, g) in enumerate(linears) if g.deltas}
    for i in first:
        x, g = linears[i]  # the deltas of one adapter serve the rows of one x alike
        groups.setdefault((id(x), id(g.deltas[0].delta.adapter)), []).append(i)
    results: dict[int, Tensor] = {
        i: project(x, g.weight, g.bias, few_rows=True) for i, (x, g) in enumerate(linears) if not g.deltas
    }
    for members in groups.values():
        weights, biases, deltas = zip(*(linears[i][1] for i in members), strict=True)
        a, b, scales, indices, _ = zip(*(first[i] for i in members), strict=True)
        x = linears[members[0]][0]
        ys = lowrank_linears(x, weights, a, b, list(scales), biases, index=indices[0])
        results.update({i: add(y, x, d[1:]) for i, y, d in zip(members, ys, deltas, strict=True)})
    return [results[i] for i in range(len(linears))]
