"""The tap: what stands in the place of ``forward`` on the instance of one projection."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, is_autocast_enabled, is_grad_enabled, nn
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.nn.functional import linear

from hnkernels.adapter.call import Calls, version_of

TAPPED = ("q", "k", "v", "out")
"""A tap's number is four times its layer's and the place of its stream here."""

_ONE_GRAPH = torch.__version__ >= "2.8"  # a TorchVersion, which compares numbers
"""Whether PyTorch's compiler traces a bound method that is an instance's forward."""
_FORWARD = nn.Linear.forward if nn.Linear.forward.__module__ == nn.Linear.__module__ else None
"""PyTorch's own; ``None`` if another tool replaced it before this is imported, as A1111's LoRA does."""


@torch.compiler.disable
def _leave_the_graph(why: str) -> None:
    """Ends the compiled graph here; if it must be whole, PyTorch's error shows the line that says why it is not."""


class Runs(Protocol):
    """What answers for a projection where the tap itself cannot.

    Attributes:
        model: that it belongs to.
    """

    model: nn.Module

    def run(self, tap: Tap, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """The output of the projection."""

    def trace(self, tap: Tap, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """The same while PyTorch's compiler is watching."""

    def forget_all(self) -> None:
        """Everything that was made of the model's weights may be stale."""

    def doubt(self) -> None:
        """The attention may not call its projections any more."""


class Tap:
    """Stands in the place of ``forward`` on the instance of one ``to_k`` or ``to_v``.

    The module stays where it is and keeps its class, parameters, hooks and state-dict keys. If another tool wraps the
    tap and it is taken off while inside that wrapper, it stays there and passes everything through.
    """

    __slots__ = ("calls", "module", "number", "runs", "stream", "wrapped")

    def __init__(self, runs: Runs, calls: Calls, stream: str, number: int, module: nn.Module):
        self.runs: Runs | None = runs
        self.calls = calls
        self.stream = stream
        self.number = number
        self.module = module
        wrapped = module.__dict__.get("forward")  # another tool's instance forward, or None
        while isinstance(old := getattr(wrapped, "__self__", None), Tap) and old.runs is None:
            wrapped = old.wrapped  # a tool that took itself off has put back one of ours that acts no more
        # Tools that take themselves off leave the class's own behind.
        self.wrapped: Any = None if getattr(wrapped, "__func__", None) is type(module).forward else wrapped
        # A bound method: PyTorch's compiler compares its function, and one compiled block can serve all its like.
        module.forward = self.forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if is_dynamo_compiling():
            if not _ONE_GRAPH:
                _leave_the_graph("a model with a hypernetwork is one graph (fullgraph=True) from PyTorch 2.8 on")
            return self.inner(x, *args, **kwargs) if self.runs is None else self.runs.trace(self, x, args, kwargs)
        runs = self.runs
        if runs is None:
            return self.inner(x, *args, **kwargs)
        # What is ready is found before anything else is asked. The call's forward pre-hook has proven it.
        call = self.calls.current
        if call is not None and not args and not kwargs and is_grad_enabled() is call.grad:
            number = self.number
            ready = call.ready[number]
            if type(ready) is tuple:
                call.reached[number] = True
                return linear(x, ready[0], ready[1])
            kept = call.kept[number]
            if (
                kept is not None
                and x is call.context
                and kept.value._version == kept.version
                and is_autocast_enabled(call.device_type) is call.autocasting
            ):
                call.reached[number] = True
                call.hits += kept.serial != call.serial
                return kept.value
            waiting = call.waiting.get(number)
            if waiting is not None and x is waiting.x and version_of(x) == waiting.version:
                del call.waiting[number]
                call.reached[number] = True
                return waiting.value
            if ready is not None:
                y = ready.run(x, call)
                if y is not None:
                    call.reached[number] = True
                    return y
        if is_compiling():
            return runs.trace(self, x, args, kwargs)
        return runs.run(self, x, args, kwargs)

    def inner(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the module does without us."""
        if self.wrapped is not None:
            return self.wrapped(x, *args, **kwargs)
        return type(self.module).forward(self.module, x, *args, **kwargs)

    @property
    def plain(self) -> bool:
        """Whether the module is a linear whose weight and bias say all there is to say, before it is called too."""
        alone = self.wrapped is None and self.in_place and not self.module._forward_pre_hooks
        # A subclass of a parameter may be quantised.
        parameters = self.module._parameters  # in which a tool may have left an attribute or a buffer instead
        own = type(self.module) is nn.Linear and type(parameters.get("weight")) in (Tensor, nn.Parameter)
        own = own and "bias" in parameters
        return alone and own and nn.Linear.forward is _FORWARD

    @property
    def in_place(self) -> bool:
        """Whether the tap is what the module calls: neither wrapped by another tool nor thrown away by it."""
        return getattr(self.module.__dict__.get("forward"), "__self__", None) is self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tap:
        # A copy of a part of the model is a part without networks: they would take the whole model along.
        whole = self.runs is not None and id(self.runs.model) in memo
        twin = memo[id(self)] = Tap.__new__(Tap)
        for name in self.__slots__:
            value = None if name == "runs" and not whole else getattr(self, name)
            setattr(twin, name, copy.deepcopy(value, memo))
        return twin

    def remove(self) -> None:
        """Gives the module back as it was."""
        self.runs = None
        if self.in_place:
            del self.module.__dict__["forward"]
            if self.wrapped is not None:
                self.module.forward = self.wrapped
            return
        outer = getattr(self.module.__dict__.get("forward"), "__self__", None)
        while isinstance(outer, Tap):  # of another model that this one is a part of, or that is a part of this one
            inner = getattr(outer.wrapped, "__self__", None)
            if inner is self:
                outer.wrapped = self.wrapped
            outer = inner
