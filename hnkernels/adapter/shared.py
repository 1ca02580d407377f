"""What all tapped layers of one model share: its contexts, its calls, its plans, and the adapters' devices."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hnkernels.adapter.arrival import Arrivals
from hnkernels.adapter.call import Call, Calls, in_backward
from hnkernels.adapter.contexts import ContextStore, SharedContext
from hnkernels.adapter.deltas import Replay
from hnkernels.adapter.plan import Layer, Plans
from hnkernels.adapter.trace import TracedContext


class Follows(Protocol):
    """What comes along to where the model computes."""

    def follow(self, device: torch.device) -> None:
        """Goes to a device."""

    def renew(self) -> None:
        """The model's own weights have changed."""


class Shared:
    """One per model. A copy or a pickle keeps nothing of any call."""

    def __init__(self) -> None:
        self.contexts = ContextStore()
        self.calls = Calls()
        self.adapters: list[Any] = []
        self.nothing: tuple[None, ...] = ()  # by the number of a tap
        self.tapped = 0  # and how many taps, when the model was last looked at
        self.plans: dict[bool, Plans] = {}  # by grad mode
        self.traced: TracedContext | None = None
        self.arrivals = Arrivals()
        self.replay_entry: weakref.ref[SharedContext] | None = None
        self.replay_without_context: Replay | None = None

    def call(self, x: Tensor) -> Call:
        """The thread's call of the model, or a loose one where a layer is called by itself."""
        calls = self.calls
        call = calls.current or calls.loose
        if call is None or (call.loose and call.grad is not torch.is_grad_enabled()):
            call = calls.loose = Call(self.nothing, x, loose=True)
            call.device = None
        if call.device != x.device:
            self.follow(x, call)
        return call

    def follow(self, x: Tensor, call: Call) -> None:
        """Brings the networks to where the model computes, which with offloading is not where its weights lie."""
        if not x.is_meta:
            for adapter in self.adapters:
                adapter.follow(x.device)
            call.device = x.device

    def plans_in(self, grad: bool, layers: Sequence[Layer] = ()) -> Plans:
        """The plans in this grad mode. Those of ``layers`` are made at once: another thread may change a strength."""
        plans = self.plans.get(grad)
        if plans is None:
            plans = self.plans[grad] = Plans(len(self.nothing))
            for layer in layers:
                plans.of(layer)
        return plans

    def replan(self) -> None:
        """Drops all plans: an adapter has come, gone or changed, or something else that they assumed."""
        self.plans = {}
        call = self.calls.current
        while call is not None:
            call.replan()
            call = call.outer

    def replay(self) -> Replay | None:
        """The generated weights of the recorded call that is being computed once more, in a backward pass."""
        if not in_backward():
            return None
        entry = None if self.replay_entry is None else self.replay_entry()
        return self.replay_without_context if entry is None else entry.replay

    def __getstate__(self) -> dict[str, Any]:
        nothing: dict[str, Any] = {"plans": {}, "traced": None, "replay_entry": None, "replay_without_context": None}
        return {**self.__dict__, **nothing}
