"""Step schedules in A1111's notation: ``"5e-5:100, 5e-6:1000, 1e-6"``."""

from __future__ import annotations

import math
import re
import warnings
from itertools import pairwise
from numbers import Real

from hnkernels.errors import InputError
from hnkernels.wording import shown

_TO_THE_END = -1

# A comma in a number, not between two parts: "0,00005", "1,5e-5:100" (decimal), "5e-5:1,000" (thousands).
_COMMA_IN_A_NUMBER = re.compile(r"(^|,)\s*\d+,\d|\d,(\s*0\d|\d{3}\s*($|,))")


class Schedule:
    """A value per step, constant in segments.

    ``"5e-5:100, 5e-6:1000, 1e-6"`` is 5e-5 for the first 100 steps, 5e-6 until step 1000, then 1e-6. A bare value, or
    one with ``:-1``, holds to the end, and whatever is written after it does not count. If no segment reaches the
    end, the schedule ends early, and with it the training. Empty parts, as after a trailing comma, are skipped.

    Args:
        text: the notation, or a plain number.
        max_steps: last step of the run; an until-step beyond it is clamped.

    Raises:
        ValueError: the notation cannot be read, a value is negative or not finite, or the steps do not rise.
    """

    def __init__(self, text: str | float, max_steps: int):
        if isinstance(text, bool) or not isinstance(text, (str, Real)):
            raise InputError(f"a schedule must be a number or a text such as '5e-5:100, 1e-6', not {shown(text)}")
        if isinstance(text, str) and _COMMA_IN_A_NUMBER.search(text):
            raise InputError(
                f"the schedule {shown(text)} has a comma inside a number; write 0.00005 or 5e-5 with a point, 1000 "
                "without a separator, and a space after the comma between two parts"
            )
        parts = [_parse(part, str(text)) for part in str(text).split(",") if part.strip()]
        if not parts:
            raise InputError(f"the schedule {shown(text)} is empty; accepted are a number or 'value:step' pairs")
        end = next((i for i, (_, until) in enumerate(parts) if until == _TO_THE_END), len(parts))
        if parts[end + 1 :]:
            warnings.warn(
                f"the schedule {shown(text)} holds {parts[end][0]} to the end; the rest is not used", stacklevel=2
            )
        for (_, earlier), (_, later) in pairwise(parts[:end]):
            if later <= earlier:
                raise InputError(
                    f"step {later} comes after step {earlier} in the schedule {shown(text)}; steps must rise"
                )
        self.segments: list[tuple[float, int]] = []
        for value, until in parts[: end + 1]:
            self.segments.append((value, max_steps if until == _TO_THE_END else min(until, max_steps)))
            if self.segments[-1][1] >= max_steps:
                break

    def at(self, step: int) -> float | None:
        """The value for the step with this number (from 0), or ``None`` if the schedule has ended."""
        return next((value for value, until in self.segments if step < until), None)

    def held_at(self, step: int) -> float:
        """The value for the step; after the end of the schedule its last, as A1111 clips gradients."""
        return next((value for value, until in self.segments if step < until), self.segments[-1][0])


def _parse(part: str, text: str) -> tuple[float, int]:
    pieces = part.strip().split(":")
    try:
        if len(pieces) > 2:
            raise InputError
        value = float(pieces[0])
        until = int(pieces[1]) if len(pieces) == 2 else _TO_THE_END
    except ValueError:
        raise InputError(
            f"cannot read {shown(part.strip())} in the schedule {shown(text)}; accepted are a number or 'value:step' "
            "pairs such as '5e-5:100, 5e-6:1000, 1e-6'"
        ) from None
    if not math.isfinite(value) or value < 0:
        raise InputError(f"{value} in the schedule {shown(text)} must be a finite number of at least 0")
    if until < 1 and until != _TO_THE_END:
        raise InputError(f"step {until} in the schedule {shown(text)} must be at least 1, or -1 for 'to the end'")
    return value, until
