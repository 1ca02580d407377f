"""A strength that follows the denoising steps, from what a patch is told of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from hnkernels.errors import InputError
from hnkernels.integrations.patcher.spots import call_of


class Timing:
    """A factor on a strength, by the noise that is left.

    Args:
        start, end: share of the sampling at which the network begins and ceases to act, from 0 to 1, as in ComfyUI's
            other nodes: shares of the model's own noise schedule, whatever the number of steps.
        strengths: factors by step, of which the last also serves all later steps; empty for 1.
        spread: spread the factors evenly over all steps instead, with straight lines between them.

    Raises:
        ValueError: the shares are not ``0 <= start <= end <= 1``, or a factor is not finite.
    """

    def __init__(self, start: float = 0.0, end: float = 1.0, strengths: Sequence[float] = (), spread: bool = False):
        if not 0 <= start <= end <= 1:
            raise InputError(f"start and end must be shares with 0 <= start <= end <= 1, not {start} and {end}")
        self.start, self.end = start, end
        self.strengths = tuple(float(value) for value in strengths)
        if not all(map(math.isfinite, self.strengths)):
            raise InputError(f"strengths must be finite numbers, not {', '.join(map(str, self.strengths))}")
        self.spread = spread

    def clock(self, percent_to_sigma: Callable[[float], Any]) -> Clock:
        """The timing for a model whose noise schedule this function gives."""
        return Clock(self, float(percent_to_sigma(self.start)), float(percent_to_sigma(self.end)))


class Clock:
    """A timing for one model. It reads the noise level once per call of the model, since on a GPU that waits for it."""

    def __init__(self, timing: Timing, first: float, last: float):
        self._timing = timing
        self._first, self._last = first, last
        self._read: tuple[object, float] = (None, 0.0)

    def factor(self, options: Mapping[str, Any]) -> float:
        """The factor now.

        Args:
            options: the ``extra_options`` of a patch, with ``"sigmas"`` [B], and ``"sample_sigmas"`` [steps + 1] where
                there are factors by step.

        Raises:
            ValueError: one of them is missing.
        """
        call = call_of(options)
        read = self._read
        if call is None or read[0] is not call:
            read = self._read = call, self._at(float(_needed(options, "sigmas").flatten()[0]), options)
        return read[1]

    def _at(self, sigma: float, options: Mapping[str, Any]) -> float:
        if not self._last <= sigma <= self._first:
            return 0.0
        strengths = self._timing.strengths
        if len(strengths) < 2:
            return strengths[0] if strengths else 1.0
        levels = _needed(options, "sample_sigmas").tolist()
        steps = max(len(levels) - 1, 1)
        # The step that a level between two belongs to has begun: samplers of higher order ask in between. What was
        # rounded to another dtype on its way is taken for the level itself.
        step = max(sum(level >= sigma * (1 - 1e-4) for level in levels[:steps]) - 1, 0)
        if not self._timing.spread:
            return strengths[min(step, len(strengths) - 1)]
        place = step / max(steps - 1, 1) * (len(strengths) - 1)
        left = min(int(place), len(strengths) - 2)
        return strengths[left] + (place - left) * (strengths[left + 1] - strengths[left])


def _needed(options: Mapping[str, Any], name: str) -> Tensor:
    value = options.get(name)
    if not isinstance(value, Tensor):
        raise InputError(f"the sampler does not tell its patches {name!r}, which a schedule needs; remove the schedule")
    return value
