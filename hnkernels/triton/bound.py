"""A program with its compiled kernels: what runs on the hot path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from hnkernels.triton import direct
from hnkernels.triton.allocation import allocator
from hnkernels.triton.launch import on
from hnkernels.triton.trace import Layout, Ref

_POOL_MOST, _POOL_STEP = 1 << 20, 256
"""Temporaries of a program share an allocation if they have so many bytes in all; each begins at a multiple."""


class Bound:
    """A program with its compiled kernels: pointers and numbers in one list, from which every launch takes its own."""

    def __init__(self, layout: Layout, compiled: Sequence[Any]):
        self.slots, self.device, self._inputs = layout.slots, layout.device, layout.inputs
        self.index = 0 if layout.device.index is None else layout.device.index
        views: dict[tuple[int, int], int] = {}  # (slot, offset in bytes) → place in the list
        constants: list[Any] = []
        places: list[list[Any]] = []  # of every launch's arguments: a place, or (index of a constant,)
        after: dict[int, list[tuple[int, int, int]]] = {}  # slot → (place, slot, offset) of the views into it
        for step in layout.steps:
            chosen: list[Any] = []
            for name in direct.positional(step.kernel):
                value = step.arguments[name]
                if not isinstance(value, Ref):
                    chosen.append((len(constants),))
                    constants.append(value)
                elif value.offset == 0:
                    chosen.append(value.slot)
                else:
                    offset = value.offset * value.dtype.itemsize
                    place = views.setdefault((value.slot, offset), self.slots + len(views))
                    after.setdefault(value.slot, []).append((place, value.slot, offset))
                    chosen.append(place)
            places.append(chosen)
        first = self.slots + len(views)
        self._missing = [None] * (self.slots - layout.inputs)
        self._tail = [0] * (self.slots - layout.inputs + len(views)) + constants
        self._views = [view for slot in self._made(layout) for view in dict.fromkeys(after.get(slot, ()))]
        pooled = self._pool_of(layout, after)
        self._entries = []
        for step, kernel, chosen in zip(layout.steps, compiled, places, strict=True):
            pick = itemgetter(*[first + p[0] if isinstance(p, tuple) else p for p in chosen])
            allocate = tuple(
                (b.slot, layout.make[b.slot], tuple(dict.fromkeys(after.get(b.slot, ()))))
                for b in step.allocate
                if b.slot not in pooled
            )
            release = tuple(slot for slot in step.release if slot not in pooled)
            self._entries.append((allocate, *direct.entry(kernel), *step.grid, pick, release))
        self._last = [(b.slot, layout.make[b.slot]) for b in layout.last]
        self._stream = direct.stream_source()
        self.run = self._run if self.device.type == "cpu" else self._run_there

    def _pool_of(self, layout: Layout, views: dict[int, list[tuple[int, int, int]]]) -> set[int]:
        """Lets small temporaries share one allocation, each of which takes as long as a launch; returns their slots."""
        self._pool: Callable[[], Tensor] | None = None
        self._pooled: list[tuple[int, int]] = []  # place in the list, and bytes from where the pool begins
        returned = {ref.slot for ref in layout.outputs}
        temporaries = [b for step in layout.steps for b in step.allocate if b.slot not in returned]
        sizes = [-(-math.prod(b.size) * b.dtype.itemsize // _POOL_STEP) * _POOL_STEP for b in temporaries]
        if len(temporaries) < 2 or sum(sizes) > _POOL_MOST:
            return set()
        begin = 0
        for buffer, size in zip(temporaries, sizes, strict=True):
            self._pooled.append((buffer.slot, begin))
            self._pooled += {(place, begin + offset) for place, _, offset in views.get(buffer.slot, ())}
            begin += size
        self._pool = allocator((begin,), (1,), torch.uint8, self.device)
        return {buffer.slot for buffer in temporaries}

    @staticmethod
    def _made(layout: Layout) -> list[int]:
        """Slots that are there before the first launch."""
        made = [operation.result for operation in layout.operations if operation.result is not None]
        return [*range(layout.inputs), *made]

    def _run_there(self, inputs: Sequence[Tensor], pointers: list[int]) -> list[Any]:
        if direct.current_device() == self.index:
            return self._run(inputs, pointers)
        with on(self.device):
            return self._run(inputs, pointers)

    def _run(self, inputs: Sequence[Tensor], pointers: list[int]) -> list[Any]:
        """The slots after the launches."""
        if len(pointers) > self._inputs:  # results of operations have slots of their own
            tensors: list[Any] = list(inputs)
            values = pointers + self._tail[len(pointers) - self._inputs :]
        else:
            tensors, values = [*inputs, *self._missing], pointers + self._tail
        for place, slot, offset in self._views:
            values[place] = values[slot] + offset
        if self._pool is not None:
            pool = self._pool()  # alive until the last launch is queued
            begin = pool.data_ptr()
            for place, offset in self._pooled:
                values[place] = begin + offset
        stream = self._stream(self.index)
        for buffers, launch, function, metadata, x, y, z, pick, release in self._entries:
            for slot, make, views in buffers:
                tensors[slot] = t = make()
                values[slot] = pointer = t.data_ptr()
                for place, _, offset in views:
                    values[place] = pointer + offset
            launch(x, y, z, stream, function, metadata, None, None, None, *pick(values))
            for slot in release:
                tensors[slot] = None
        for slot, make in self._last:
            tensors[slot] = make()
        return tensors
