"""The call: what belongs to one call of the model in one thread, and is gone when that returns."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Hashable, Iterable
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

from hnkernels.ops.casting import Casts, exchange_casts

T = TypeVar("T")

_serials = itertools.count(1)


class Kept(NamedTuple):
    """K or V of one layer for one context.

    Attributes:
        value: [batch, tokens, n].
        version: of the value when it was computed; it is computed once more if its receiver has written into it.
        token: equals that of the layer's plan for as long as the value is what the plan would compute.
        serial: of the call that computed it.
    """

    value: Tensor
    version: int
    token: Hashable
    serial: int


class Waiting(NamedTuple):
    """What was computed of x for a tap before that asked, with the version of x."""

    x: Tensor
    version: int
    value: Tensor


class Call:
    """One call of a model in one thread. A layer that is called by itself has a loose one, which proves nothing.

    Args:
        nothing: ``None`` for every number of a tap.
        x: a tensor of the call.
        loose: whether it is of one layer.

    Attributes:
        grad, autocast: the modes at its beginning; ``autocast`` is the dtype or ``None``.
        context: the tensor that cross-attention layers receive, and ``entry`` what was made of it.
        plans: what each layer does, in this grad mode.
        kept: by tap number, ``None`` or K or V of ``context`` ready to be handed out.
        ready: by tap number, what it does by itself, as in ``Plans``.
        waiting: by tap number, what was computed for taps that are yet to ask.
        rewritten: by tap number, the context that was rewritten for taps that are yet to ask.
        reached: by tap number, whether the tap was asked.
        grouped: the contexts and links for which one operation for all layers was tried.
        compiled: whether a part of the model is compiled by itself.
        triton: whether the Triton backend runs, once that has been asked.
        captured: whether the call is recorded into a graph that is replayed (CUDA's, or ``torch.jit.trace``'s): what
            depends on the context is then computed in it.
    """

    __slots__ = (
        "_casts_outside", "_frame", "autocast", "autocasting", "captured", "compiled", "context", "device",
        "device_type", "entry", "grad", "grouped", "hits", "kept", "loose", "misses", "outer", "plans", "reached",
        "ready", "rewritten", "serial", "triton", "used", "waiting",
    )  # fmt: skip

    def __init__(self, nothing: tuple[None, ...], x: Tensor | None, loose: bool = False):
        self.serial = next(_serials)
        self.loose = loose
        self.grad = torch.is_grad_enabled()
        self.device = None if x is None else x.device
        kind = "cpu" if self.device is None else self.device.type
        self.device_type = "cpu" if kind == "meta" else kind  # autocast does not know the meta device
        self.autocasting = torch.is_autocast_enabled(self.device_type)
        self.autocast = torch.get_autocast_dtype(self.device_type) if self.autocasting else None
        self.captured = capturing(self.device)
        self.context: Tensor | None = None
        self.entry: Any = None
        self.plans: Any = None
        self.kept: Any = nothing
        self.ready: Any = nothing
        self.reached = bytearray(len(nothing))
        self.compiled = False
        self.triton: bool | None = None
        self.waiting: dict[int, Waiting] = {}
        self.rewritten: dict[int, Waiting] = {}
        self.grouped: set[Hashable] = set()
        self.used: list[Any] = []  # layers whose attention a hook has seen reach its taps
        self.hits = self.misses = 0
        self.outer: Call | None = None
        self._casts_outside: Casts | None = None
        self._frame: FrameType | None = None

    def begin(self, calls: Calls) -> Self:
        """Makes it the thread's present call. What lasts as long as a call may be entered here."""
        while (outer := calls.current) is not None and not outer._runs():
            outer.end(calls)  # KeyboardInterrupt ends a call without a word
        self.outer, calls.current = outer, self
        self._frame = sys._getframe(2)  # who calls the forward pre-hook, and then the forward itself
        calls.loose = None
        if self.grad and self.autocasting:
            self._casts_outside = exchange_casts({})
        return self

    def end(self, calls: Calls) -> None:
        """Gives way to the call around it."""
        if self.grad and self.autocasting:
            exchange_casts(self._casts_outside)
        calls.current = self.outer
        self.outer = self._frame = None

    def _runs(self) -> bool:
        """Whether it is still under way further up this stack."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None

    def forget_waiting(self, taps: Iterable[int] | None = None) -> None:
        """Drops what is there for taps (all of them) that have not asked."""
        for where in (self.waiting, self.rewritten):
            for number in list(where) if taps is None else taps:
                where.pop(number, None)

    def replan(self) -> None:
        """Forgets what was ready: something has changed in the middle of the call."""
        self.plans = None
        self.ready = (None,) * len(self.reached)
        self.kept = [None] * len(self.reached)  # filled again for the rest of the call


class Calls(threading.local):
    """The calls of one model that run in the present thread. A copy or pickle starts with none."""

    current: Call | None = None
    loose: Call | None = None
    runs: Any = None  # the sampling runs of the thread

    def __deepcopy__(self, memo: dict) -> Calls:
        return memo.setdefault(id(self), Calls())

    def __reduce__(self):
        return Calls, ()


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes in where x is, if it is on."""
    device = "cpu" if x.is_meta else x.device.type  # autocast does not know the meta device
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def capturing(device: torch.device | None) -> bool:
    """Whether what is launched now goes into a CUDA graph, or into one of ``torch.jit.trace``."""
    if torch._C._get_tracing_state() is not None:
        return True
    on_gpu = device is not None and device.type == "cuda" and torch.cuda.is_available()
    return on_gpu and torch.cuda.is_current_stream_capturing()


def version_of(x: Tensor) -> int:
    """What tells whether x has been written into; an inference tensor does not say."""
    return 0 if x.is_inference() else x._version


def in_backward() -> bool:
    """Whether this is called from a backward pass, which is where checkpointed blocks are computed once more."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def to_keep(compute: Callable[[], T]) -> T:
    """What ``compute`` gives, outside of inference mode: its tensors carry no version, and cannot be recorded later."""
    if not torch.is_inference_mode_enabled():
        return compute()
    with torch.inference_mode(False), torch.no_grad():
        return compute()
