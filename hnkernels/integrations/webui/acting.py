"""How hypernetworks act while a picture is drawn, as the panel of the web UI says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hnkernels.adapter.strength import Strength
from hnkernels.errors import InputError
from hnkernels.integrations.patcher.applying import strength_table

INFOTEXT = {
    "strength": "hnkernels strength",
    "where": "hnkernels where",
    "start": "hnkernels start",
    "end": "hnkernels end",
}
"""Settings, and what a picture's infotext calls them."""


@dataclass(frozen=True)
class Acting:
    """Settings for all hypernetworks of a picture.

    Attributes:
        strength: factor on the strengths in the prompt.
        where: a table of strengths in JSON; empty for everywhere.
        start, end: shares of the steps, from 0 to 1, between which they act.

    Raises:
        ValueError: one of them is not as described.
    """

    strength: float = 1.0
    where: str = ""
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        if not 0 <= self.start <= self.end <= 1:
            raise InputError(
                f"start and end must be shares with 0 <= start <= end <= 1, not {self.start} and {self.end}"
            )
        strength_table(self.where)

    def infotext(self) -> dict[str, Any]:
        """What is not as usual, for the infotext of a picture."""
        usual = Acting()
        return {
            name: getattr(self, setting)
            for setting, name in INFOTEXT.items()
            if getattr(self, setting) != getattr(usual, setting)
        }

    @classmethod
    def read(cls, setting: str, infotext: Mapping[str, Any]) -> float | str:
        """A setting as the infotext of a picture has it; as usual where it has none."""
        usual = getattr(cls(), setting)
        return type(usual)(infotext.get(INFOTEXT[setting], usual))

    def table(self) -> Mapping[str, Any]:
        """``where`` as ``attach`` takes it."""
        return strength_table(self.where)

    def factor(self, step: int, steps: int) -> float:
        """1 where they act at this step of as many, else 0."""
        progress = step / max(steps - 1, 1)
        return float(self.start <= progress <= self.end)

    def strengths(self, own: float) -> tuple[Strength, ...]:
        """The strengths of a network with this one in the prompt, which multiply."""
        return (own * self.strength, self.table()) if self.table() else (own * self.strength,)
