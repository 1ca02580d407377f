"""A program with its compiled kernels: what runs on the hot path.

It is a function that is written for the program, as PyTorch's compiler writes one for a graph: a statement for every
allocation and every launch, addresses in local variables. A loop over lists that say the same takes twice as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
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
    """A program with its compiled kernels.

    Attributes:
        run: takes the inputs and their addresses (with operations before the launches: of all slots), allocates,
            launches and returns the outputs.
    """

    def __init__(self, layout: Layout, compiled: Sequence[Any]):
        self._device = layout.device
        self._index = 0 if layout.device.index is None else layout.device.index
        self._run = _Source(layout, compiled, self._index).function()
        self.run: Callable[..., list[Tensor]] = self._run if self._device.type == "cpu" else self._run_there

    def _run_there(self, inputs: Sequence[Tensor], pointers: list[int]) -> list[Tensor]:
        if direct.current_device() == self._index:
            return self._run(inputs, pointers)
        with on(self._device):
            return self._run(inputs, pointers)


class _Source:
    """The text of the function, and what its names stand for.

    ``t3`` is the tensor in slot 3, ``p3`` its address, ``p3_512`` that of what begins 512 bytes later.
    """

    def __init__(self, layout: Layout, compiled: Sequence[Any], index: int):
        self._layout = layout
        self._names: dict[str, Any] = {"stream_of": direct.stream_source(), "index": index}
        self._views: dict[int, list[int]] = {}  # slot → offsets in bytes of what launches take of it
        for ref in self._refs():
            offsets = self._views.setdefault(ref.slot, [])
            if ref.offset and ref.offset * ref.dtype.itemsize not in offsets:
                offsets.append(ref.offset * ref.dtype.itemsize)
        self._text = "\n    ".join(["def run(inputs, pointers):", *self._lines(compiled)]) + "\n"

    def function(self) -> Callable[..., list[Tensor]]:
        """The function itself."""
        exec(compile(self._text, "<a program of hnkernels>", "exec"), self._names)
        return self._names["run"]

    def _refs(self) -> Iterator[Ref]:
        for step in self._layout.steps:
            yield from (value for value in step.arguments.values() if isinstance(value, Ref))

    def _lines(self, compiled: Sequence[Any]) -> Iterator[str]:
        layout = self._layout
        given = layout.slots if layout.operations else layout.inputs
        yield "".join(f"p{slot}, " for slot in range(given)) + "= pointers"
        made = [operation.result for operation in layout.operations if operation.result is not None]
        for slot in (*range(layout.inputs), *made):
            yield from self._view_lines(slot)
        pooled = yield from self._pool_lines()
        yield "stream = stream_of(index)"
        for number, (step, kernel) in enumerate(zip(layout.steps, compiled, strict=True)):
            for buffer in step.allocate:
                if buffer.slot not in pooled:
                    yield f"t{buffer.slot} = {self._name(f'make{buffer.slot}', layout.make[buffer.slot])}()"
                    yield f"p{buffer.slot} = t{buffer.slot}.data_ptr()"
                    yield from self._view_lines(buffer.slot)
            launch, function, metadata = (
                self._name(f"{what}{number}", value)
                for what, value in zip(("launch", "function", "metadata"), direct.entry(kernel), strict=True)
            )
            arguments = [self._argument(step.arguments[name]) for name in direct.positional(step.kernel)]
            grid = ", ".join(map(str, step.grid))
            yield f"{launch}({grid}, stream, {function}, {metadata}, None, None, None, {', '.join(arguments)})"
            for slot in step.release:
                if slot not in pooled and slot not in made:
                    yield f"del t{slot}"
        for buffer in layout.last:
            yield f"t{buffer.slot} = {self._name(f'make{buffer.slot}', layout.make[buffer.slot])}()"
        yield f"return [{', '.join(map(self._output, layout.outputs))}]"

    def _view_lines(self, slot: int) -> Iterator[str]:
        for offset in self._views.get(slot, ()):
            yield f"p{slot}_{offset} = p{slot} + {offset}"

    def _pool_lines(self) -> Generator[str, None, set[int]]:
        """Lets small temporaries share one allocation, each of which takes as long as a launch; returns their slots."""
        layout = self._layout
        returned = {ref.slot for ref in layout.outputs}
        temporaries = [b for step in layout.steps for b in step.allocate if b.slot not in returned]
        sizes = [-(-math.prod(b.size) * b.dtype.itemsize // _POOL_STEP) * _POOL_STEP for b in temporaries]
        if len(temporaries) < 2 or sum(sizes) > _POOL_MOST:
            return set()
        make = allocator((sum(sizes),), (1,), torch.uint8, layout.device)
        yield f"pool = {self._name('make_pool', make)}()"  # alive until the last launch is queued
        yield "begin = pool.data_ptr()"
        begin = 0
        for buffer, size in zip(temporaries, sizes, strict=True):
            yield f"p{buffer.slot} = begin + {begin}"
            yield from self._view_lines(buffer.slot)
            begin += size
        return {buffer.slot for buffer in temporaries}

    def _argument(self, value: Any) -> str:
        if isinstance(value, Ref):
            offset = value.offset * value.dtype.itemsize
            return f"p{value.slot}_{offset}" if offset else f"p{value.slot}"
        if value is None or type(value) in (bool, int):
            return repr(value)
        return self._name(f"constant{len(self._names)}", value)

    def _output(self, ref: Ref) -> str:
        given = ref.slot < self._layout.inputs or any(o.result == ref.slot for o in self._layout.operations)
        tensor = f"inputs[{ref.slot}]" if given else f"t{ref.slot}"
        if not given and self._layout.is_whole(ref):
            return tensor
        return f"{self._name(f'output{len(self._names)}', ref.on)}({tensor})"

    def _name(self, name: str, value: Any) -> str:
        self._names[name] = value
        return name
