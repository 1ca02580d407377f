"""Bars as SVG, beside the curves: a few amounts of one kind, each made of parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from hnkernels.ui.charts import COLOURS

_WIDTH, _BAR, _GAP, _TOP = 560, 30, 30, 20
_ROOM = 110  # for the number after a bar
_LEAST = 1.5  # of a part that is drawn with a gap after it


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
    scale = (_WIDTH - _ROOM) / longest
    pieces = []
    for number, bar in enumerate(drawn):
        top, left = _TOP + number * (_BAR + _GAP), 0.0
        pieces.append(f'<text x="0" y="{top - 5}">{escape(bar.label)}</text>')
        colour = COLOURS[bar.colour % len(COLOURS)]
        for name, amount in bar.parts:
            width = amount * scale
            gap = 1.0 if width > _LEAST else 0.0
            about = escape(f"{name}: {said(amount)}")
            pieces.append(
                f'<rect x="{left:.2f}" y="{top}" width="{max(width - gap, 0):.2f}" height="{_BAR}" fill="{colour}">'
                f"<title>{about}</title></rect>"
            )
            left += width
        pieces.append(f'<text x="{left + 6:.1f}" y="{top + _BAR / 2 + 4:.0f}">{escape(said(bar.amount))}</text>')
    spoken = "; ".join(f"{bar.label}: {said(bar.amount)}" for bar in drawn)
    height = _TOP + len(drawn) * (_BAR + _GAP) - _GAP + 4
    svg = (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(f"{title}: {spoken}", quote=True)}" '
        f'fill="currentColor" font-size="14">{"".join(pieces)}</svg>'
    )
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"
