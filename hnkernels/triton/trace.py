"""Tracing an operator: what it allocates, launches and computes besides, seen on tensors without data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from hnkernels.triton.allocation import allocator
from hnkernels.triton.launch import Call, Launch
from hnkernels.triton.target import poisoned

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
        return self.on(tensors[self.slot])

    def on(self, base: Tensor) -> Tensor:
        """The tensor, where this is in the slot."""
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
        return allocator(self.size, self.stride, self.dtype, device)


class Operation(NamedTuple):
    """An operation of PyTorch on slots, such as a copy of a tensor that is not contiguous; Refs among its arguments."""

    function: Any
    arguments: tuple
    keywords: dict[str, Any]
    result: int | None  # slot; None where it writes into one of its arguments

    def refs(self) -> list[Ref]:
        """The tensors that it takes."""
        values = [*self.arguments, *self.keywords.values()]
        return [r for v in values for r in (v if isinstance(v, list) else [v]) if isinstance(r, Ref)]

    def run(self, tensors: list[Any], device: torch.device) -> None:
        """The operation, where these are in the slots."""
        keywords = {name: _filled(a, tensors) for name, a in self.keywords.items()}
        if "device" in keywords:
            keywords["device"] = device
        result = self.function(*[_filled(a, tensors) for a in self.arguments], **keywords)
        if self.result is not None:
            tensors[self.result] = result


class LaunchOf(NamedTuple):
    """A launch on slots; Refs among its arguments."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]

    def refs(self) -> list[Ref]:
        """The tensors that it takes."""
        return [v for v in self.arguments.values() if isinstance(v, Ref)]

    def run(self, tensors: list[Any]) -> Any:
        """The launch as Triton makes it, where these are in the slots; the compiled kernel."""
        values = {n: v.of(tensors) if isinstance(v, Ref) else v for n, v in self.arguments.items()}
        return self.kernel[self.grid](**values)


class Step(NamedTuple):
    """One launch or operation, and which slots are allocated before it and not needed after it."""

    what: LaunchOf | Operation
    allocate: tuple[Buffer, ...]
    release: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A program as it was traced: the whole of it, with a slot for every tensor.

    Attributes:
        device: where it runs.
        inputs: how many slots are given; they come first.
        slots: how many there are.
        steps: launches, and what PyTorch computes in between, in order.
        last: what is allocated after them, because it is returned and no step touches it.
        outputs: what is returned.
        make: what allocates a slot.
    """

    device: torch.device
    inputs: int
    slots: int
    steps: tuple[Step, ...]
    last: tuple[Buffer, ...]
    outputs: tuple[Ref, ...]
    make: dict[int, Callable[[], Tensor]]

    def is_whole(self, ref: Ref) -> bool:
        """Whether a tensor is all that is allocated in its slot, with those dimensions."""
        made = [b for step in self.steps for b in step.allocate] + list(self.last)
        return any((b.slot, b.size, b.stride, 0) == (ref.slot, ref.size, ref.stride, ref.offset) for b in made)


class Trace(TorchDispatchMode):
    """Sees what an operator allocates, launches and computes besides, on tensors without data."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self.slots: dict[int, int] = {}  # storage → slot
        self.buffers: dict[int, Buffer] = {}
        self.launches: list[Launch] = []
        self.calls: list[Call] = []
        self._steps: list[LaunchOf | Operation] = []
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
        """Takes an operation of PyTorch as a whole, which returns a new tensor, or one that it has written into."""
        with _disable_current_modes():
            result = function(*arguments)
        self._operation(function, arguments, {}, None if self._known(result) else self._slot(result))
        return result

    def _operation(self, function: Any, arguments: Sequence[Any], keywords: dict[str, Any], made: int | None) -> None:
        refs = tuple(_mapped(self.ref, a) for a in arguments)
        self._steps.append(Operation(function, refs, {n: _mapped(self.ref, a) for n, a in keywords.items()}, made))

    def add(self, launch: Launch, call: Call, grid: tuple[int, ...]) -> None:
        """Takes a launch; see ``launch.Trace``."""
        self.launches.append(launch)
        self.calls.append(call)
        arguments = {n: _mapped(self.ref, v) for n, v in call.arguments.items()}
        self._steps.append(LaunchOf(call.kernel, (*grid, *(1,) * (3 - len(grid))), arguments))  # type: ignore[arg-type]

    def layout(self, results: Sequence[Tensor], device: torch.device) -> Layout:
        """The program, which returns these.

        A buffer is allocated before the first step that has it, and given back after the last one.
        """
        outputs = tuple(self.ref(t) for t in results)
        for ref in outputs:  # allocated with the dimensions with which it is returned, so that no view has to be made
            buffer = self.buffers.get(ref.slot)
            if buffer is not None and math.prod(buffer.size) == math.prod(ref.size) and ref.offset == 0:
                self.buffers[ref.slot] = buffer._replace(size=ref.size, stride=ref.stride)
        returned = {ref.slot for ref in outputs}
        touched = [{ref.slot for ref in what.refs()} for what in self._steps]
        made = {w.result for w in self._steps if isinstance(w, Operation) and w.result is not None}
        seen: set[int] = set()
        steps = []
        for i, what in enumerate(self._steps):
            allocate = tuple(self.buffers[s] for s in sorted(touched[i] - seen) if s in self.buffers)
            seen |= touched[i]
            later = set().union(*touched[i + 1 :]) | returned
            release = tuple(s for s in sorted(touched[i] - later) if s in self.buffers or s in made)
            steps.append(Step(what, allocate, release))
        last = tuple(self.buffers[s] for s in sorted(returned - seen) if s in self.buffers)
        make = {b.slot: b.maker(device, b.slot in returned) for b in self.buffers.values()}
        return Layout(device, len(self.inputs), len(self.slots), tuple(steps), last, outputs, make)


def _mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)) and any(isinstance(t, Tensor) for t in value):
        return [function(t) if isinstance(t, Tensor) else t for t in value]
    return value


def _filled(value: Any, tensors: Sequence[Any]) -> Any:
    if isinstance(value, Ref):
        return value.of(tensors)
    return [v.of(tensors) if isinstance(v, Ref) else v for v in value] if isinstance(value, list) else value
