"""Operators of PyTorch, so that its compiler, fake tensors and checkpointing know them, with next to no cost in eager.

An operator is a function on tensors and plain values that launches. It knows nothing of autograd; the functions beside
it do. Where PyTorch looks on (its compiler, a dispatch mode) it is called through the dispatcher, elsewhere directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hnkernels.triton.program import Planned, Program

_library = torch.library.Library("hnkernels", "DEF")

_watchers = torch._C._len_torch_dispatch_stack

_NO_SECOND = (
    "the Triton backend has no second derivatives; use backend='portable' where a gradient is to be differentiated "
    "again"
)


class Operator:
    """``torch.ops.hnkernels.<name>``.

    Args:
        name, schema: as PyTorch registers them.
        function: what it does, allocating and launching.
        planned: whether, for these arguments, their signature decides what it does, so that a program can be kept. What
            reads the addresses of tensors into a table is not of that kind.
    """

    def __init__(
        self, name: str, schema: str, function: Callable[..., Any], planned: Callable[..., bool] = lambda *_: True
    ):
        self.name, self.function = name, function
        self._plannable, self._programs = planned, Planned(function)
        _library.define(f"{name}{schema}")
        torch.library.impl(f"hnkernels::{name}", "default", func=self._run, lib=_library)
        self._overload = getattr(torch.ops.hnkernels, name).default

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or _watchers():
            return self._overload(*args)
        return self._run(*args)

    def planned(self, key: tuple, tensors: Sequence[Tensor], *args: Any) -> tuple[Any, Program | None]:
        """A call whose signature the caller knows, and the program that ran; ``None`` where PyTorch looks on.

        Args:
            key: the signature; equal ones stand for equal programs.
            tensors: those among the arguments, in order.
            args: the arguments.
        """
        if _watchers():
            return self._overload(*args), None
        program = self._programs.program((*key, tensors[0].device), args)
        return program.run(tensors), program

    def runner(self, x: Tensor, *args: Any) -> Callable[[Tensor], Any] | None:
        """The program for these arguments, of which all but the first stay what they are; ``None`` without one."""
        if not self._plannable(x, *args):
            return None
        program, (_, *others) = self._programs.of(x, *args)
        return program.runner(others)

    def _run(self, *args: Any) -> Any:
        return self._programs(*args) if self._plannable(*args) else self.function(*args)

    def shapes(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Registers the decorated function as what the operator returns for fake tensors.

        On tensors of the meta device the operator itself runs, and allocates and counts without launching.
        """

        @torch.library.register_fake(f"hnkernels::{self.name}", lib=_library)
        def _(*args: Any) -> Any:
            first = next(t for a in args for t in (a if isinstance(a, (list, tuple)) else [a]) if isinstance(t, Tensor))
            return rule(*args) if isinstance(first, FakeTensor) else self._run(*args)

        return rule


def operator(
    name: str, schema: str, planned: Callable[..., bool] = lambda *_: True
) -> Callable[[Callable[..., Any]], Operator]:
    """Makes an operator of the decorated function; see ``Operator``."""
    return lambda function: Operator(name, schema, function, planned)


class _Once(torch.autograd.Function):
    """Passes gradients through and refuses to be differentiated. Inputs: the gradients, then what they depend on."""

    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(None if t is None else t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(_NO_SECOND)


def once(gradients: Sequence[Tensor | None], *depends_on: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients, of which a second derivative is refused. They depend on these tensors."""
    if not torch.is_grad_enabled():
        return tuple(gradients)
    return _Once.apply(len(gradients), *gradients, *depends_on)


def with_rows(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors with contiguous rows, the same one only once."""
    unique: dict[int, Tensor] = {}
    for t in tensors:
        if id(t) not in unique:
            unique[id(t)] = t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()
    return tuple(unique[id(t)] for t in tensors)


def contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, contiguous."""
    return [t.contiguous() for t in tensors]


def aligned(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, contiguous, and beginning where kernels with a table may read 16 bytes at a time."""
    tensors = contiguous(tensors)
    return [t if t.data_ptr() % 16 == 0 else t.clone() for t in tensors]


def per_stream(tensors: Sequence[Tensor], streams: int) -> tuple[Tensor, ...]:
    """One tensor per stream: a single one serves them all."""
    return (*tensors,) * (streams if len(tensors) == 1 else 1)
