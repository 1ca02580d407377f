"""Programs: what an operator does for arguments of one signature, decided once and from then on only run.

An operator is a Python function that allocates and launches. For every signature (shapes, strides, dtypes, device,
flags, target) it runs once on tensors without data. What it launches, allocates and returns is its **program**, a
frozen description in which every tensor is a slot. Running it allocates and launches, and does nothing else:

- the first run of a combination of pointer alignments launches as Triton does, ``kernel[grid](...)``, which compiles;
- every later one calls the compiled kernels themselves, with positional arguments (``direct.py``).

The launch counter, ``explain``, offline compilation and the meta device read the same description.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import attrgetter, itemgetter, or_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from hnkernels.triton import direct
from hnkernels.triton.launch import Call, Launch, note, on, tracing
from hnkernels.triton.launch import _calls as _captured
from hnkernels.triton.launch import _records as _recorded
from hnkernels.triton.target import planned_for, poisoned, setting, target_of
from hnkernels.triton.tiling import forced_tiles

_ALIGNMENT = 16
"""What Triton specializes pointers on, in bytes."""

_POOL_MOST, _POOL_STEP = 1 << 20, 256
"""Temporaries of a program share an allocation if they have so many bytes in all; each begins at a multiple."""

_AT_MOST = 256
"""Programs that an operator keeps: shapes times flags of one run of a model, several times over."""

# Called by ``map``, which is quicker than a loop.
_shape, _dtype, _stride, _pointer = attrgetter("shape"), attrgetter("dtype"), Tensor.stride, Tensor.data_ptr

_TENSOR = object()
"""Stands in a signature where a tensor was."""

_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty.memory_format, _aten.empty_strided.default, _aten.new_empty.default, _aten.new_empty_strided.default,
    _aten.empty_like.default,
}  # fmt: skip


class Ref(NamedTuple):
    """A tensor of a program: a slot, and where in it the tensor lies."""

    slot: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # elements from the slot's first one
    dtype: torch.dtype

    def of(self, tensors: Sequence[Any]) -> Tensor:
        """The tensor, where these are in the slots."""
        base = tensors[self.slot]
        if self.offset == 0 and base.shape == self.size and base.stride() == self.stride:
            return base
        return base.as_strided(self.size, self.stride, base.storage_offset() + self.offset)


class Buffer(NamedTuple):
    """A tensor that a program allocates, contiguous."""

    slot: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def maker(self, device: torch.device, returned: bool) -> Callable[[], Tensor]:
        """What allocates it.

        On a pretended device nothing will be written into it, and nobody is to take what is returned for a result.
        """
        if returned and poisoned():
            return torch.full(self.size, float("nan"), dtype=self.dtype, device=device).clone
        return partial(torch.empty_strided, self.size, self.stride, dtype=self.dtype, device=device)


class Operation(NamedTuple):
    """An operation of PyTorch on slots, such as a copy of a tensor that is not contiguous; Refs among its arguments."""

    function: Any
    arguments: tuple
    keywords: dict[str, Any]
    result: int | None  # slot; None where it writes into one of its arguments


class Step(NamedTuple):
    """One launch, and which slots are allocated before it and not needed after it."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]  # Refs for tensors
    allocate: tuple[Buffer, ...]
    release: tuple[int, ...]


class Program:
    """The launches of an operator for one signature. Made by ``Planned``."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any], device: torch.device):
        trace = _Trace()
        with _disable_current_modes(), torch.no_grad(), tracing(trace), planned_for(target_of(device)):
            likenesses = trace.inputs_of(arguments)
            with trace:
                results = function(*likenesses)
        self.device = device
        self.launches: tuple[Launch, ...] = tuple(trace.launches)
        self.calls: tuple[Call, ...] = tuple(trace.calls)
        self.inputs = len(trace.inputs)
        single = isinstance(results, Tensor)
        self.outputs = tuple(trace.ref(t) for t in ([results] if single else results))
        self.single = single
        self.slots = len(trace.slots)
        trace.shape_as(self.outputs)
        self.operations, self.steps, self.last = trace.finished({ref.slot for ref in self.outputs})
        self.known: dict[Any, Any] = {}  # for those who go on from its results
        returned = {ref.slot for ref in self.outputs}
        self._make = {b.slot: b.maker(device, b.slot in returned) for b in trace.buffers.values()}
        self._bound: dict[tuple[int, ...], _Bound | None] = {}

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """Allocates, launches, and returns the outputs. ``inputs`` are the tensors among the operator's arguments."""
        if _recorded.get() or _captured.get() is not None:
            note(self.launches, self.calls)
        if self.device.type == "meta":
            return self._results(self._plain(inputs, launch=False))
        if self.operations:
            inputs = [*inputs, *(None,) * (self.slots - self.inputs)]  # type: ignore[list-item]
            self._operate(inputs)
            if not self.steps and not self.last:
                return self._results(inputs)
            pointers = [0 if t is None else t.data_ptr() for t in inputs]
        else:
            pointers = list(map(_pointer, inputs))
        key = () if reduce(or_, pointers, 0) % _ALIGNMENT == 0 else tuple([p % _ALIGNMENT for p in pointers])
        bound = self._bound.get(key)
        if bound is None or direct.hooked():
            return self._results(self._compile(inputs, key))
        return self._results(bound.run(inputs, pointers))

    def _compile(self, inputs: Sequence[Any], key: tuple[int, ...]) -> list[Any]:
        """A run as Triton launches by itself, whose compiled kernels are kept."""
        compiled: list[Any] = []
        with on(self.device):
            tensors = self._plain(inputs, compiled=compiled)
        if key not in self._bound and direct.usable(compiled):
            self._bound[key] = _Bound(self, compiled)
        return tensors

    def _plain(self, inputs: Sequence[Any], launch: bool = True, compiled: list[Any] | None = None) -> list[Any]:
        tensors = [*inputs, *[None] * (self.slots - len(inputs))]
        if self.operations and not launch:
            self._operate(tensors)
        for step in self.steps:
            for buffer in step.allocate:
                tensors[buffer.slot] = self._make[buffer.slot]()
            if launch:
                values = {n: v.of(tensors) if isinstance(v, Ref) else v for n, v in step.arguments.items()}
                kernel = step.kernel[step.grid](**values)
                if compiled is not None:
                    compiled.append(kernel)
            for slot in step.release:
                tensors[slot] = None
        for buffer in self.last:
            tensors[buffer.slot] = self._make[buffer.slot]()
        return tensors

    def _operate(self, tensors: list[Any]) -> None:
        for function, arguments, keywords, made in self.operations:
            given = [_filled(a, tensors) if isinstance(a, (Ref, list)) else a for a in arguments]
            if keywords:
                keywords = {name: _filled(a, tensors) for name, a in keywords.items()}
                if "device" in keywords:
                    keywords["device"] = self.device
            result = function(*given, **keywords)
            if made is not None:
                tensors[made] = result

    def _results(self, tensors: list[Any]) -> Any:
        if self.single:
            return self.outputs[0].of(tensors)
        return [ref.of(tensors) for ref in self.outputs]


class _Bound:
    """A program with its compiled kernels: pointers and numbers in one list, from which every launch takes its own."""

    def __init__(self, program: Program, compiled: Sequence[Any]):
        self.slots, self.device, self._inputs = program.slots, program.device, program.inputs
        self.index = 0 if program.device.index is None else program.device.index
        views: dict[tuple[int, int], int] = {}  # (slot, offset in bytes) → place in the list
        constants: list[Any] = []
        places: list[list[Any]] = []  # of every launch's arguments: a place, or (index of a constant,)
        after: dict[int, list[tuple[int, int, int]]] = {}  # slot → (place, slot, offset) of the views into it
        for step in program.steps:
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
        self._missing = [None] * (self.slots - program.inputs)
        self._tail = [0] * (self.slots - program.inputs + len(views)) + constants
        self._views = [view for slot in self._made(program) for view in dict.fromkeys(after.get(slot, ()))]
        pooled = self._pool_of(program, after)
        self._entries = []
        for step, kernel, chosen in zip(program.steps, compiled, places, strict=True):
            pick = itemgetter(*[first + p[0] if isinstance(p, tuple) else p for p in chosen])
            allocate = tuple(
                (b.slot, program._make[b.slot], tuple(dict.fromkeys(after.get(b.slot, ()))))
                for b in step.allocate
                if b.slot not in pooled
            )
            release = tuple(slot for slot in step.release if slot not in pooled)
            self._entries.append((allocate, *direct.entry(kernel), *step.grid, pick, release))
        self._last = [(b.slot, program._make[b.slot]) for b in program.last]
        self._stream = direct.stream_source()
        self.run = self._run if self.device.type == "cpu" else self._run_there

    def _pool_of(self, program: Program, views: dict[int, list[tuple[int, int, int]]]) -> set[int]:
        """Lets small temporaries share one allocation, each of which takes as long as a launch; returns their slots."""
        self._pool: Callable[[], Tensor] | None = None
        self._pooled: list[tuple[int, int]] = []  # place in the list, and bytes from where the pool begins
        returned = {ref.slot for ref in program.outputs}
        temporaries = [b for step in program.steps for b in step.allocate if b.slot not in returned]
        sizes = [-(-math.prod(b.size) * b.dtype.itemsize // _POOL_STEP) * _POOL_STEP for b in temporaries]
        if len(temporaries) < 2 or sum(sizes) > _POOL_MOST:
            return set()
        begin = 0
        for buffer, size in zip(temporaries, sizes, strict=True):
            self._pooled.append((buffer.slot, begin))
            self._pooled += {(place, begin + offset) for place, _, offset in views.get(buffer.slot, ())}
            begin += size
        self._pool = partial(torch.empty_strided, (begin,), (1,), dtype=torch.uint8, device=self.device)
        return {buffer.slot for buffer in temporaries}

    @staticmethod
    def _made(program: Program) -> list[int]:
        """Slots that are there before the first launch."""
        made = [operation.result for operation in program.operations if operation.result is not None]
        return [*range(program.inputs), *made]

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


class _Trace(TorchDispatchMode):
    """Sees what an operator allocates, launches and computes besides, on tensors without data."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self.slots: dict[int, int] = {}  # storage → slot
        self.buffers: dict[int, Buffer] = {}
        self.operations: list[Operation] = []
        self.launches: list[Launch] = []
        self.calls: list[Call] = []
        self.grids: list[tuple[int, int, int]] = []
        self._launched: set[int] = set()  # slots that are no inputs
        self._alive: list[Any] = []  # so that no storage's address is used again

    def inputs_of(self, arguments: Sequence[Any]) -> list[Any]:
        """The operator's arguments, with a tensor without data for every tensor."""
        return [_mapped(self._input, a) for a in arguments]

    def _input(self, t: Tensor) -> Tensor:
        like = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
        self.inputs.append(like)
        self._slot(like)
        return like

    def _slot(self, t: Tensor) -> int:
        storage = t.untyped_storage()
        self._alive.append((storage, t))
        return self.slots.setdefault(storage._cdata, len(self.slots))

    def _known(self, result: Any) -> bool:
        tensors = result if isinstance(result, (list, tuple)) else [result]
        return all(t.untyped_storage()._cdata in self.slots for t in tensors)

    def ref(self, t: Tensor) -> Ref:
        """Where the tensor lies."""
        return Ref(self._slot(t), tuple(t.shape), t.stride(), int(t.storage_offset()), t.dtype)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _ALLOCATIONS:
            if len(self.inputs) <= (slot := self._slot(result)):
                self.buffers[slot] = Buffer(slot, tuple(result.shape), result.stride(), result.dtype)
        elif func._schema.is_mutable or not self._known(result):  # else it is a view
            made = None if func._schema.is_mutable else self._slot(result)
            self._operation(func, args, kwargs, made)
        return result

    def operate(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Takes an operation of PyTorch as a whole."""
        with _disable_current_modes():
            result = function(*arguments)
        self._operation(function, arguments, {}, self._slot(result))
        return result

    def _operation(self, function: Any, arguments: Sequence[Any], keywords: dict[str, Any], made: int | None) -> None:
        refs = tuple(_mapped(self.ref, a) for a in arguments)
        operation = Operation(function, refs, {name: _mapped(self.ref, a) for name, a in keywords.items()}, made)
        if any(ref.slot in self._launched for ref in _refs(operation)):
            raise RuntimeError(f"{function} on what a launch has touched cannot be a part of a program")
        self.operations.append(operation)  # and so it can come before all launches

    def add(self, launch: Launch, call: Call, grid: tuple[int, ...]) -> None:
        """Takes a launch; see ``launch.Trace``."""
        self.launches.append(launch)
        self.calls.append(call)
        self.grids.append((*grid, *(1,) * (3 - len(grid))))  # type: ignore[arg-type]
        slots = {self._slot(t) for t in call.arguments.values() if isinstance(t, Tensor)}
        self._launched |= {slot for slot in slots if slot >= len(self.inputs)}

    def shape_as(self, outputs: Sequence[Ref]) -> None:
        """Allocates what is returned with the dimensions with which it is returned, so that no view has to be made."""
        for ref in outputs:
            buffer = self.buffers.get(ref.slot)
            if buffer is not None and math.prod(buffer.size) == math.prod(ref.size) and ref.offset == 0:
                self.buffers[ref.slot] = buffer._replace(size=ref.size, stride=ref.stride)

    def finished(self, outputs: set[int]) -> tuple[tuple[Operation, ...], tuple[Step, ...], tuple[Buffer, ...]]:
        """Operations, launches, and the buffers that no launch has touched, where ``outputs`` are returned.

        A buffer is allocated before the first launch that has it, and given back after the last one.
        """
        used = [{n: _mapped(self.ref, v) for n, v in call.arguments.items()} for call in self.calls]
        touched = [{v.slot for v in values.values() if isinstance(v, Ref)} for values in used]
        early = {ref.slot for operation in self.operations for ref in _refs(operation)} & set(self.buffers)
        operations = [
            Operation(_aten.empty.memory_format, (list(b.size),), {"dtype": b.dtype, "device": None}, b.slot)
            for b in (self.buffers[slot] for slot in sorted(early))
        ]  # fmt: skip
        made = {operation.result for operation in self.operations if operation.result is not None} | early
        seen: set[int] = set(made)
        steps = []
        for i, (call, grid, values) in enumerate(zip(self.calls, self.grids, used, strict=True)):
            allocate = tuple(self.buffers[s] for s in sorted(touched[i] - seen) if s in self.buffers)
            seen |= touched[i]
            later = set().union(*touched[i + 1 :]) | outputs
            release = tuple(s for s in sorted(touched[i] - later) if s in self.buffers or s in made)
            steps.append(Step(call.kernel, grid, values, allocate, release))
        last = tuple(self.buffers[s] for s in sorted(outputs - seen) if s in self.buffers)
        return (*operations, *self.operations), tuple(steps), last


class Planned:
    """An operator's function as its programs, by signature.

    Args:
        function: takes tensors, sequences of tensors, and plain values; allocates and launches; returns a tensor or a
            list of them. What it does depends on nothing but its arguments' signature.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.programs: OrderedDict[tuple, Program] = OrderedDict()

    def __call__(self, *args: Any) -> Any:
        inputs: list[Tensor] = []
        plain: list[Any] = []
        for a in args:
            if isinstance(a, Tensor):
                inputs.append(a)
                plain.append(_TENSOR)
            elif isinstance(a, (list, tuple)):
                plain.append(len(a))
                for t in a:
                    if isinstance(t, Tensor):
                        inputs.append(t)
                        plain.append(_TENSOR)
                    else:
                        plain.append(t)
            else:
                plain.append(a)
        return self.program((*plain, *signature(inputs), inputs[0].device), args).run(inputs)

    def program(self, key: tuple, args: Sequence[Any]) -> Program:
        """The program for arguments of this signature, which ends in the device."""
        key = (forced_tiles(), setting(), *key)
        program = self.programs.get(key)
        if program is None:
            program = self.programs[key] = Program(self.function, args, key[-1])
            while len(self.programs) > _AT_MOST:
                self.programs.popitem(last=False)
        return program


def signature(tensors: Sequence[Tensor]) -> tuple:
    """What a program depends on of tensors."""
    return (*map(_shape, tensors), *map(_dtype, tensors), *map(_stride, tensors))


def _mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)) and any(isinstance(t, Tensor) for t in value):
        return [function(t) if isinstance(t, Tensor) else t for t in value]
    return value


def _refs(operation: Operation) -> list[Ref]:
    values = [*operation.arguments, *operation.keywords.values()]
    return [r for v in values for r in (v if isinstance(v, list) else [v]) if isinstance(r, Ref)]


def _filled(value: Any, tensors: Sequence[Any]) -> Any:
    if isinstance(value, Ref):
        return value.of(tensors)
    return [v.of(tensors) if isinstance(v, Ref) else v for v in value] if isinstance(value, list) else value
