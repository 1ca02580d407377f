"""How much time is left, in all and for a phase."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Counts down from the start of a check.

    Args:
        seconds: for all of it.
        now: the time, in seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        self._now, self._ends = now, now() + seconds
        self._phase_ends = self._ends

    def begin(self, share: float) -> None:
        """A phase begins, which may take this share of the time that is left."""
        self._phase_ends = self._now() + share * self.left()

    def left(self) -> float:
        """Seconds until all of it has to end."""
        return self._ends - self._now()

    def left_in_phase(self) -> float:
        """Seconds until the phase has to end."""
        return min(self._phase_ends - self._now(), self.left())
