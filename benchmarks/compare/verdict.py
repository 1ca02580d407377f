"""A change or noise: what the timings of two versions say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

THRESHOLD = 0.05
"""A smaller change is none."""


@dataclass(frozen=True)
class Pair:
    """Timings of one pair of fresh processes, round by round, in turn.

    Attributes:
        old, new: seconds of the provider in question.
        control_old, control_new: of code that is the same in both.
    """

    old: Sequence[float]
    new: Sequence[float]
    control_old: Sequence[float]
    control_new: Sequence[float]

    @property
    def change(self) -> float:
        """Logarithm of the ratio of medians, above 0 where the new version is slower."""
        return math.log(statistics.median(self.new) / statistics.median(self.old))

    @property
    def control(self) -> float:
        """The same of the code that did not change."""
        return math.log(statistics.median(self.control_new) / statistics.median(self.control_old))


@dataclass(frozen=True)
class Verdict:
    """What the pairs say together.

    Attributes:
        ratio: the new version's time over the old one's, the median of the pairs.
        noise: by how much the control, or the ratio itself from pair to pair, strays: a share.
        word: ``"slower"``, ``"faster"`` or ``"same"``.
    """

    ratio: float
    noise: float
    word: str


def judge(pairs: Sequence[Pair]) -> Verdict:
    """A change counts if it is beyond the threshold by more than the noise, and every pair shows its direction."""
    changes = [pair.change for pair in pairs]
    change = statistics.median(changes)
    spread = (max(changes) - min(changes)) / 2
    noise = max(spread, *(abs(pair.control) for pair in pairs))
    one_way = all(c > 0 for c in changes) or all(c < 0 for c in changes)
    counts = one_way and abs(change) > math.log1p(THRESHOLD) + noise
    word = "same" if not counts else "slower" if change > 0 else "faster"
    return Verdict(math.exp(change), math.expm1(noise), word)
