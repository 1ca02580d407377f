"""The one place where kernels are launched, and therefore counted.

A launcher says what it launches by ``launch``. While an operator is traced that becomes a step of its program
(``program.py``), which launches it from then on; outside of a trace it is launched here, as Triton does by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hnkernels.triton._compat import DEPENDENT_LAUNCHES
from hnkernels.triton.cost import Chain
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import Tiles


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: the kernel's name.
        programs: how many programs it starts.
        tiles: how it is cut up; ``None`` for row kernels.
        flops: floating-point operations of its products, a multiply-add as two.
        bytes_read, bytes_written: every byte once, however often it is read.
        steps: how often a program loads, one time after the other; 0 where the launcher does not say.
        product: batch, M, N and K of a product whose tiles are not ours to know.
        act: the activation in its epilogue, by the device's name.
        why: who computes it and why, where there was a choice; see ``route.py``.
        chain: two products in one loop before the main one.
    """

    kernel: str
    programs: int
    tiles: Tiles | None
    flops: int
    bytes_read: int
    bytes_written: int
    steps: int = 0
    product: tuple[int, int, int, int] | None = None
    act: str = "linear"
    why: str = ""
    chain: Chain | None = None


class Call(NamedTuple):
    """A kernel and everything that it is launched with, by name; tiles, warps and stages included."""

    kernel: Any
    arguments: dict[str, Any]


class Trace(Protocol):
    """What takes launches in place of a device.

    Attributes:
        launches: those so far, PyTorch's own linear among them.
    """

    launches: list[Launch]

    def add(self, launch: Launch, call: Call, grid: tuple[int, ...]) -> None: ...

    def operate(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor: ...


_records: ContextVar[tuple[list[Launch], ...]] = ContextVar("records", default=())
_calls: ContextVar[list[Call] | None] = ContextVar("calls", default=None)
_trace: ContextVar[Trace | None] = ContextVar("trace", default=None)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within it every launch is noted in the list. Recordings nest."""
    launches: list[Launch] = []
    token = _records.set((*_records.get(), launches))
    try:
        yield launches
    finally:
        _records.reset(token)


@contextmanager
def capturing() -> Iterator[list[Call]]:
    """Within it every launch leaves its arguments in the list: what offline compilation starts from."""
    calls: list[Call] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


@contextmanager
def tracing(trace: Trace | None) -> Iterator[None]:
    """Within it every launch goes to the trace instead of a device; with ``None``, to the device again."""
    token = _trace.set(trace)
    try:
        yield
    finally:
        _trace.reset(token)


def recorded() -> bool:
    """Whether somebody wants to know of launches."""
    return bool(_records.get()) or _calls.get() is not None


def note(launches: Sequence[Launch], calls: Sequence[Call] = ()) -> None:
    """Enters launches into whatever records them now."""
    for record in _records.get():
        record += launches
    captured = _calls.get()
    if captured is not None:
        captured += calls


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *,
    writes: Sequence[str],
    addressed: Sequence[Tensor | None] = (),
    tiles: Tiles | None = None,
    flops: int = 0,
    steps: int = 0,
    why: str = "",
    chain: Any = None,
    **arguments: Any,
) -> None:
    """Launches a kernel on the device of what it writes; on the meta device it is only noted.

    Args:
        kernel: the jit function.
        grid: programs along up to three axes; with a 0 in it nothing is launched.
        writes: the names of the arguments that it stores to. It reads the other tensors among them, and only those:
            what this launch has no use for is passed as None.
        addressed: what it reads by addresses in a table.
        tiles: how it is cut up, passed on as BLOCK_M … num_stages.
        flops: of its products, for the account.
        steps: of a program's main loop, for the account.
        why: it is not the vendor's library that computes this.
        chain: two products in one loop before the main one, a ``Chain``, for the account.
        arguments: everything else that the kernel takes.
    """
    programs = 1
    for size in grid:
        programs *= size
    if programs == 0:
        return
    written = [t for name in writes if (t := arguments[name]) is not None]
    read = [t for name, t in arguments.items() if isinstance(t, Tensor) and name not in writes]
    if tiles is not None:
        arguments.update(tiles.arguments())
    device = written[0].device
    if DEPENDENT_LAUNCHES and target_of(device).launches_dependents:
        arguments["launch_pdl"] = True  # what kernels begin with looks at it
    call = Call(kernel, arguments)
    entry = Launch(
        _name(kernel), programs, tiles, flops, unique_bytes([*read, *addressed]), unique_bytes(written), steps,
        act=arguments.get("ACT", "linear"), why=why, chain=chain,
    )  # fmt: skip
    trace = _trace.get()
    if trace is not None:
        trace.add(entry, call, grid)
        return
    note([entry], [call])
    if device.type != "meta":
        with on(device):
            kernel[grid](**arguments)


def on(device: torch.device) -> AbstractContextManager:
    """Makes an accelerator the current one."""
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)


def compute(function: Callable[..., Tensor], entry: Callable[[Tensor], Launch], *arguments: Any) -> Tensor:
    """An operation of PyTorch, counted like a launch; ``entry`` says as what, given its result."""
    trace = _trace.get()
    result = function(*arguments) if trace is None else trace.operate(function, *arguments)
    if trace is not None:
        trace.launches.append(entry(result))
    elif _records.get():
        note([entry(result)])
    return result


def _name(kernel: Any) -> str:
    return (kernel.fn if hasattr(kernel, "fn") else kernel).__name__


def unique_bytes(tensors: Sequence[Tensor | None]) -> int:
    """Bytes of the tensors, those of the same one once."""
    sizes = {
        (t.untyped_storage()._cdata, t.storage_offset(), t.shape): t.numel() * t.element_size()
        for t in tensors
        if t is not None
    }
    return sum(sizes.values())
