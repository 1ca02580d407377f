"""Programs: what an operator does for arguments of one signature, decided once and from then on only run.

An operator is a Python function that allocates and launches. For every signature (shapes, strides, dtypes, device,
flags, target) it runs once on tensors without data. What it launches, allocates and returns is its **program**, a
frozen description in which every tensor is a slot. Running it allocates and launches, and does nothing else:

- the first run of a combination of pointer alignments launches as Triton does, ``kernel[grid](...)``, which compiles;
- every later one calls the compiled kernels themselves, with positional arguments (``direct.py``).

The launch counter, ``explain``, offline compilation and the meta device read the same description.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import reduce
from operator import attrgetter, or_
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from hnkernels.triton import direct
from hnkernels.triton.bound import Bound
from hnkernels.triton.launch import Call, Launch, note, on, recorded, tracing
from hnkernels.triton.target import planned_for, setting, target_of
from hnkernels.triton.tiling import forced_tiles
from hnkernels.triton.trace import Operation, Trace

_ALIGNMENT = 16
"""What Triton specializes pointers on, in bytes."""

_AT_MOST = 256
"""Programs that an operator keeps: shapes times flags of one run of a model, several times over."""

# Called by ``map``, which is quicker than a loop.
_shape, _dtype, _stride, _pointer = attrgetter("shape"), attrgetter("dtype"), Tensor.stride, Tensor.data_ptr

_watchers = torch._C._len_torch_dispatch_stack

_TENSOR = object()
"""Stands in a signature where a tensor was."""


class Program:
    """The launches of an operator for one signature. Made by ``Planned``."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any], device: torch.device):
        trace = Trace()
        with _disable_current_modes(), torch.no_grad(), tracing(trace), planned_for(target_of(device)):
            likenesses = trace.inputs_of(arguments)
            with trace:
                results = function(*likenesses)
        self.launches: tuple[Launch, ...] = tuple(trace.launches)
        self.calls: tuple[Call, ...] = tuple(trace.calls)
        self._single = isinstance(results, Tensor)
        self.layout = trace.layout([results] if self._single else results, device)
        self.known: dict[Any, Any] = {}  # for those who go on from its results
        self._bound: dict[tuple[int, ...], Bound | None] = {}
        self._meta = device.type == "meta"
        self._operates = any(isinstance(step.what, Operation) for step in self.layout.steps)

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """Allocates, launches, and returns the outputs. ``inputs`` are the tensors among the operator's arguments."""
        if recorded():
            note(self.launches, self.calls)
        if self._operates and torch.is_grad_enabled():
            with torch.no_grad():  # operations are steps like launches, and record nothing
                return self._run(inputs)
        return self._run(inputs)

    def _run(self, inputs: Sequence[Tensor]) -> Any:
        if self._meta:
            return self._results(self._plain(inputs, launch=False))
        pointers = list(map(_pointer, inputs))
        key = () if reduce(or_, pointers, 0) % _ALIGNMENT == 0 else _misaligned(pointers)
        bound = self._bound.get(key)
        if bound is None or direct.hooked():
            return self._results(self._compile(inputs, key))
        results = bound.run(inputs, pointers)
        return results[0] if self._single else results

    def runner(self, others: Sequence[Tensor]) -> Callable[[Tensor], Any]:
        """What runs it for another first input and these others, for as long as nobody looks on (``watched``)."""
        if self._meta or self._operates:
            return lambda first: self.run([first, *others])
        kept, run, single = self._bound, self.run, self._single

        def run_directly(first: Tensor) -> Any:
            inputs = [first, *others]
            pointers = list(map(_pointer, inputs))
            bound = kept.get(() if reduce(or_, pointers) % _ALIGNMENT == 0 else _misaligned(pointers))
            if bound is None:
                return run(inputs)
            results = bound.run(inputs, pointers)
            return results[0] if single else results

        return run_directly

    def _compile(self, inputs: Sequence[Any], key: tuple[int, ...]) -> list[Any]:
        """A run as Triton launches by itself, whose compiled kernels are kept."""
        compiled: list[Any] = []
        with on(self.layout.device):
            tensors = self._plain(inputs, compiled=compiled)
        if key not in self._bound and direct.usable(compiled):
            self._bound[key] = Bound(self.layout, compiled)
        return tensors

    def _plain(self, inputs: Sequence[Any], launch: bool = True, compiled: list[Any] | None = None) -> list[Any]:
        tensors = [*inputs, *[None] * (self.layout.slots - len(inputs))]
        for what, allocate, release in self.layout.steps:
            for buffer in allocate:
                tensors[buffer.slot] = self.layout.make[buffer.slot]()
            if isinstance(what, Operation):
                what.run(tensors, self.layout.device)
            elif launch:
                kernel = what.run(tensors)
                if compiled is not None:
                    compiled.append(kernel)
            for slot in release:
                tensors[slot] = None
        for buffer in self.layout.last:
            tensors[buffer.slot] = self.layout.make[buffer.slot]()
        return tensors

    def _results(self, tensors: list[Any]) -> Any:
        results = [ref.of(tensors) for ref in self.layout.outputs]
        return results[0] if self._single else results


class Programs:
    """Programs by signature, those that were used last."""

    def __init__(self) -> None:
        self.programs: OrderedDict[tuple, Program] = OrderedDict()

    def program(self, key: tuple, function: Callable[..., Any], args: Sequence[Any]) -> Program:
        """That of a function for arguments of this signature, which ends in the device."""
        key = (forced_tiles(), setting(), *key)
        program = self.programs.get(key)
        if program is None:
            program = self.programs[key] = Program(function, args, key[-1])
            while len(self.programs) > _AT_MOST:
                self.programs.popitem(last=False)
        return program


class Planned:
    """An operator's function as its programs, by signature.

    Args:
        function: takes tensors, sequences of tensors, and plain values; allocates and launches; returns a tensor or a
            list of them. What it does depends on nothing but its arguments' signature.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.kept = Programs()

    def __call__(self, *args: Any) -> Any:
        program, inputs = self.of(*args)
        return program.run(inputs)

    def of(self, *args: Any) -> tuple[Program, list[Tensor]]:
        """The program for these arguments, and the tensors among them, which it takes."""
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
        return self.program((*plain, *signature(inputs), inputs[0].device), args), inputs

    def program(self, key: tuple, args: Sequence[Any]) -> Program:
        """The program for arguments of this signature, which ends in the device."""
        return self.kept.program(key, self.function, args)


def watched() -> bool:
    """Whether somebody wants to know of launches, or of operations: then nothing may be passed over."""
    return recorded() or direct.hooked() or bool(_watchers())


def _misaligned(pointers: Sequence[int]) -> tuple[int, ...]:
    return tuple([p % _ALIGNMENT for p in pointers])


def signature(tensors: Sequence[Tensor]) -> tuple:
    """What a program depends on of tensors."""
    return (*map(_shape, tensors), *map(_dtype, tensors), *map(_stride, tensors))
