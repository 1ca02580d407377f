"""What is done with the proof: before a call, everything that it does not hold for is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hnkernels.adapter.call import Call
from hnkernels.adapter.layer import TappedLayer
from hnkernels.adapter.proof import Fingerprint, Runs, Watch
from hnkernels.adapter.shared import Shared
from hnkernels.ops import derived, onednn


class Prover:
    """One per model. A copy or a pickle starts without a proof, and keeps nothing that would need one.

    Attributes:
        watch: what everything kept depends on, as it was; ``None`` before the first call.
        changed: whether an adapter does something else since.
    """

    def __init__(self, shared: Shared, layers: Sequence[TappedLayer]):
        self._shared = shared
        self._layers = layers
        self.watch: Watch | None = None
        self.changed = True
        self._fingerprint: Fingerprint | None = None
        self._device: torch.device | None = None  # where the networks are

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "watch": None, "changed": True, "_fingerprint": None, "_device": None}

    def prove(self, call: Call, x: Tensor | None, context: Tensor | None, timestep: Any) -> bool:
        """Forgets what no longer holds. Returns whether the call goes on with a sampling run."""
        watch = self.watch
        recorded = call.grad or True in self._shared.plans  # or may be, inside of a call that began without
        stands = watch is not None and watch.stands(recorded)
        unchanged = watch is not None and watch.unchanged()
        moved = x is not None and not x.is_meta and x.device != self._device
        if not unchanged:
            for adapter in self._shared.adapters:
                adapter.renew()
        if watch is None or not stands or moved or self.changed:
            if not unchanged or not stands or moved:
                self.forget()
            if not stands:
                for layer in self._layers:
                    layer.refresh()
            if not stands or moved:
                self._shared.replan()
            if x is not None:
                self._shared.follow(x, call)
                self._device = call.device
            watch = self.watch = self._make_watch()
            self.changed = False
        elif not unchanged:
            self.forget()
            watch.renew()
        runs = self._shared.calls.runs
        if runs is None:
            runs = self._shared.calls.runs = Runs()
        if call.grad:
            runs.forget()
            if watch.trains:  # optimisers with fused=True change parameters without a trace in their version
                self.forget()
            if not any(adapter.fused for adapter in self._shared.adapters):
                if not unchanged:
                    self._fingerprint = None
                return False
            goes_on = False
        else:
            goes_on = runs.goes_on(context, timestep)
        if call.captured or (goes_on and stands and unchanged and self._fingerprint is not None):
            return goes_on
        fingerprint = watch.fingerprint()
        if not fingerprint.equals(self._fingerprint):
            if self._fingerprint is not None:
                onednn.forget()
                derived.forget()
            self.forget()
            self._fingerprint = fingerprint
        return False

    def _make_watch(self) -> Watch:
        self._shared.tapped = sum(len(layer.taps) for layer in self._layers)
        watch = Watch()
        for adapter in self._shared.adapters:
            adapter.watch(watch)
        for layer in self._layers:
            if layer.reached:
                layer.watch(watch)
        return watch

    def forget(self) -> None:
        """What was computed from values that are others now; the plans stay."""
        self._shared.contexts.forget_kept()
        for layer in self._layers:
            layer.forget()
        for plans in self._shared.plans.values():
            plans.forget()
