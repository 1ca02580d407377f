"""Step schedules in A1111's notation: ``"5e-5:100, 5e-6:1000, 1e-6"``."""

from __future__ import annotations

import math


class Schedule:
    """A value per step, constant in segments.

    ``"5e-5:100, 5e-6:1000, 1e-6"`` is 5e-5 for the first 100 steps, 5e-6 until step 1000, then 1e-6. A bare value, or
    one with ``:-1``, holds to the end, and whatever is written after it does not count. If no segment reaches the
    end, the schedule ends early, and with it the training.

    Args:
        text: the notation, or a plain number.
        max_steps: last step of the run; an until-step beyond it is clamped.

    Raises:
        ValueError: the notation cannot be read, or a value is negative or not finite.
    """

    def __init__(self, text: str | float, max_steps: int):
        self.segments: list[tuple[float, int]] = []
        for part in str(text).split(","):
            value, until = _parse(part, str(text))
            if until is None or until == -1:
                until = max_steps
            self.segments.append((value, min(until, max_steps)))
            if until >= max_steps:
                break

    def at(self, step: int) -> float | None:
        """The value for the step with this number (from 0), or ``None`` if the schedule has ended."""
        return next((value for value, until in self.segments if step < until), None)


def _parse(part: str, text: str) -> tuple[float, int | None]:
    pieces = part.strip().split(":")
    try:
        if len(pieces) > 2:
            raise ValueError
        value = float(pieces[0])
        until = int(pieces[1]) if len(pieces) == 2 else None
    except ValueError:
        raise ValueError(
            f"cannot read {part.strip()!r} in the schedule {text!r}; accepted are a number or 'value:step' pairs such "
            "as '5e-5:100, 5e-6:1000, 1e-6'"
        ) from None
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{value} in the schedule {text!r} must be a finite number of at least 0")
    if until is not None and until < 1 and until != -1:
        raise ValueError(f"step {until} in the schedule {text!r} must be at least 1, or -1 for 'to the end'")
    return value, until
