"""What a tap does by itself: an operation of which the proof of the call says that its plan still holds.

All that an operation would check of its plan, the proof has checked before the call; what is left to be looked at is
the context. It is made when a layer has run the operation the long way, and gone with the plans of the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hnkernels.adapter.call import Call, Waiting, version_of

Run = Callable[[Tensor], Sequence[Tensor]]
"""Takes x, contiguous, like the one it was made for."""


class Operation:
    """An operation for taps of one layer that see the same x: the first that asks runs it.

    Args:
        run: gives one result per tap.
        place: which result is that of the tap that asks first.
        later: the numbers of the other taps, and the places of their results, which wait for them.
        x, call: for which it was run the long way.
    """

    __slots__ = ("_autocast", "_device", "_dtype", "_later", "_place", "_run", "_shape")

    def __init__(self, run: Run, place: int, later: Sequence[tuple[int, int]], x: Tensor, call: Call):
        self._run, self._place, self._later = run, place, later
        self._shape, self._dtype, self._device, self._autocast = x.shape, x.dtype, x.device, call.autocast

    def run(self, x: Tensor, call: Call) -> Tensor | None:
        """The result of the tap that asks; ``None`` if x or the modes are others."""
        if (
            call.captured  # what a graph reads must be kept for it
            or type(x) is not Tensor
            or x.shape != self._shape
            or x.dtype is not self._dtype
            or x.device != self._device
            or not x.is_contiguous()
            or call.autocast is not self._autocast
            or torch.is_autocast_enabled(call.device_type) is not call.autocasting
        ):
            return None
        results = self._run(x)
        if self._later:
            version = version_of(x)
            for number, place in self._later:
                call.waiting[number] = Waiting(x, version, results[place])
        return results[self._place]
