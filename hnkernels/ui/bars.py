"""Bars: a few amounts of one kind, each made of parts, legible at any width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from hnkernels.ui.charts import COLOURS

_LONGEST = 75  # per cent of the width; the number stands after it


@dataclass(frozen=True)
class Bar:
    """One amount.

    Args:
        label: whose it is.
        parts: what it is made of, by name, in order.
        colour: index into ``COLOURS``.
    """

    label: str
    parts: Sequence[tuple[str, float]]
    colour: int

    @property
    def amount(self) -> float:
        """All parts together."""
        return sum(amount for _, amount in self.parts)


def bars(title: str, drawn: Sequence[Bar], said: Callable[[float], str]) -> str:
    """A figure of bars, one below the other; a part's name shows when it is pointed at.

    Args:
        title: what is shown, and how it is known.
        drawn: the bars.
        said: a number as people read it.
    """
    longest = max((bar.amount for bar in drawn), default=0.0) or 1.0
    spoken = "; ".join(f"{bar.label}: {said(bar.amount)}" for bar in drawn)
    lines = "".join(_line(bar, _LONGEST / longest, said) for bar in drawn)
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<div role="img" aria-label="{escape(f"{title}: {spoken}", quote=True)}">{lines}</div></figure>'
    )


def _line(bar: Bar, scale: float, said: Callable[[float], str]) -> str:
    colour = COLOURS[bar.colour % len(COLOURS)]
    parts = "".join(
        f'<div title="{escape(f"{name}: {said(amount)}", quote=True)}" style="width:{amount * scale:.3f}%;'
        f'background:{colour};height:1.5rem;box-shadow:inset -1px 0 0 var(--body-background-fill)"></div>'
        for name, amount in bar.parts
    )
    return (
        f'<div style="margin-top:.35rem;font-size:.875rem">{escape(bar.label)}</div>'
        f'<div style="display:flex;align-items:center">{parts}'
        f'<span style="margin-left:.5rem;white-space:nowrap;font-size:.875rem">{escape(said(bar.amount))}</span></div>'
    )
