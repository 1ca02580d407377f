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
from hnkernels.triton.trace import LaunchOf, Layout, Operation, Ref

_POOL_MOST, _POOL_STEP = 1 << 20, 256
"""Temporaries of a program share an allocation if they have so many bytes in all; each begins at a multiple."""


class Bound:
    """A program with its compiled kernels.

    Attributes:
        run: takes the inputs and their addresses, allocates, launches and returns the outputs.
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
        self._names: dict[str, Any] = {"stream_of": direct.stream_source(), "index": index, "device": layout.device}
        self._steps = [step.what for step in layout.steps]
        self._views: dict[int, list[int]] = {}  # slot → offsets in bytes of what launches take of it
        for ref in (ref for what in self._steps if isinstance(what, LaunchOf) for ref in what.refs()):
            offsets = self._views.setdefault(ref.slot, [])
            if ref.offset and ref.offset * ref.dtype.itemsize not in offsets:
                offsets.append(ref.offset * ref.dtype.itemsize)
        self._text = "\n    ".join(["def run(inputs, pointers):", *self._lines(compiled)]) + "\n"

    def function(self) -> Callable[..., list[Tensor]]:
        """The function itself."""
        exec(compile(self._text, "<a program of hnkernels>", "exec"), self._names)
        return self._names["run"]

    def _lines(self, compiled: Sequence[Any]) -> Iterator[str]:
        layout, kernels = self._layout, iter(compiled)
        yield "".join(f"p{slot}, " for slot in range(layout.inputs)) + "= pointers"
        for slot in range(layout.inputs):
            yield from self._view_lines(slot)
        pooled = yield from self._pool_lines()
        yield "stream = stream_of(index)"
        for number, step in enumerate(layout.steps):
            for buffer in step.allocate:
                if buffer.slot not in pooled:
                    yield f"t{buffer.slot} = {self._name(f'make{buffer.slot}', layout.make[buffer.slot])}()"
                    yield from self._address_lines(buffer.slot)
            if isinstance(step.what, Operation):
                yield from self._operation_lines(number, step.what)
            else:
                yield self._launch_line(number, step.what, next(kernels))
            for slot in step.release:
                if slot not in pooled:
                    yield f"del t{slot}"
        for buffer in layout.last:
            yield f"t{buffer.slot} = {self._name(f'make{buffer.slot}', layout.make[buffer.slot])}()"
        yield f"return [{', '.join(map(self._tensor, layout.outputs))}]"

    def _launch_line(self, number: int, what: LaunchOf, kernel: Any) -> str:
        launch, function, metadata = (
            self._name(f"{name}{number}", value)
            for name, value in zip(("launch", "function", "metadata"), direct.entry(kernel), strict=True)
        )
        arguments = [self._argument(what.arguments[name]) for name in direct.positional(what.kernel)]
        grid = ", ".join(map(str, what.grid))
        return f"{launch}({grid}, stream, {function}, {metadata}, None, None, None, {', '.join(arguments)})"

    def _operation_lines(self, number: int, what: Operation) -> Iterator[str]:
        given = [self._value(a) for a in what.arguments]
        given += [
            f"{name}={'device' if name == 'device' else self._value(a)}" for name, a in what.keywords.items()
        ]  # fmt: skip
        call = f"{self._name(f'operation{number}', what.function)}({', '.join(given)})"
        if what.result is None:
            yield call
        else:
            yield f"t{what.result} = {call}"
            yield from self._address_lines(what.result)

    def _address_lines(self, slot: int) -> Iterator[str]:
        if slot in self._views:  # else no launch takes it
            yield f"p{slot} = t{slot}.data_ptr()"
            yield from self._view_lines(slot)

    def _view_lines(self, slot: int) -> Iterator[str]:
        for offset in self._views.get(slot, ()):
            yield f"p{slot}_{offset} = p{slot} + {offset}"

    def _pool_lines(self) -> Generator[str, None, set[int]]:
        """Lets small temporaries share one allocation, each of which takes as long as a launch; returns their slots."""
        layout = self._layout
        tensors = {ref.slot for ref in layout.outputs}
        tensors |= {ref.slot for what in self._steps if isinstance(what, Operation) for ref in what.refs()}
        temporaries = [b for step in layout.steps for b in step.allocate if b.slot not in tensors]
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

    def _value(self, value: Any) -> str:
        """An argument of one of PyTorch's operations."""
        if isinstance(value, list):
            return f"[{', '.join(map(self._value, value))}]"
        return self._tensor(value) if isinstance(value, Ref) else self._name(f"constant{len(self._names)}", value)

    def _tensor(self, ref: Ref) -> str:
        given = ref.slot < self._layout.inputs
        tensor = f"inputs[{ref.slot}]" if given else f"t{ref.slot}"
        if not given and self._layout.is_whole(ref):
            return tensor
        return f"{self._name(f'view{len(self._names)}', ref.on)}({tensor})"

    def _name(self, name: str, value: Any) -> str:
        self._names[name] = value
        return name
