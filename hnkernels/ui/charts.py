"""Curves as SVG: small, sharp, readable in the light and in the dark, and by a screen reader as a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from hnkernels.home.runs.curves import Curve

COLOURS = ("#2563eb", "#ea580c", "#059669", "#c026d3", "#b45309", "#0891b2", "#dc2626", "#7c3aed")
"""Of the series, one after the other; each stands out from white and from black."""

_WIDTH, _HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 10, 28
_TICKS = 5


@dataclass(frozen=True)
class Series:
    """One line.

    Args:
        label: what the legend calls it.
        curve: its points.
        colour: index into ``COLOURS``.
        dashed: drawn in dashes, as what is to be beaten.
        points: marked one by one, as what is measured now and then.
        band: the range between the extremes is shaded.
    """

    label: str
    curve: Curve
    colour: int
    dashed: bool = False
    points: bool = False
    band: bool = False


def chart(title: str, series: Sequence[Series]) -> str:
    """A figure with title, curves and legend; empty if no series has a point."""
    drawn = [one for one in series if len(one.curve.steps)]
    if not drawn:
        return ""
    x = _scale([one.curve.steps for one in drawn], _LEFT, _WIDTH - _RIGHT)
    bounds = [bound for one in drawn for bound in ((one.curve.low, one.curve.high) if one.band else (one.curve.mean,))]
    y = _scale(bounds, _HEIGHT - _BOTTOM, _TOP)
    parts = [_axis(x, y)]
    for one in drawn:
        parts.append(_drawn(one, x, y))
    said = "; ".join(f"{one.label}: {_number(one.curve.mean[-1])} at step {one.curve.steps[-1]:.0f}" for one in drawn)
    legend = "".join(
        f'<span><span class="swatch" style="background:{_colour(one)}{";opacity:.6" if one.dashed else ""}"></span>'
        f"{escape(one.label)}</span>"
        for one in drawn
    )
    svg = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title + ": " + said, quote=True)}" '
        f'fill="currentColor" font-size="12">{"".join(parts)}</svg>'
    )
    return f'<figure><figcaption>{escape(title)}</figcaption>{svg}<div class="legend">{legend}</div></figure>'


@dataclass(frozen=True)
class _Scale:
    """From numbers to places on the picture."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers within the range."""
        raw = (self.high - self.low) / _TICKS
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, first + 4 * _TICKS) if n * step <= self.high * (1 + 1e-9) + 1e-300]


def _scale(numbers: Sequence[np.ndarray], start: float, end: float) -> _Scale:
    low, high = (float(f(np.concatenate(numbers))) for f in (np.min, np.max))
    if not high > low:
        low, high = (min(low, 0.0), max(high, 0.0)) if low else (0.0, 1.0)
    return _Scale(low, high, start, end)


def _axis(x: _Scale, y: _Scale) -> str:
    lines = []
    for value in y.ticks():
        at = y(value)
        lines.append(
            f'<path d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}" stroke="currentColor" stroke-opacity=".15"/>'
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_number(value)}</text>'
        )
    lines += [
        f'<text x="{x(value):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{value:,.0f}</text>'
        for value in x.ticks()
        if value == round(value)
    ]
    return "".join(lines)


def _drawn(one: Series, x: _Scale, y: _Scale) -> str:
    colour, curve = _colour(one), one.curve
    parts = []
    if one.band:
        places = _places(curve.steps, curve.high, x, y) + _places(curve.steps, curve.low, x, y)[::-1]
        parts.append(f'<polygon points="{" ".join(places)}" fill="{colour}" fill-opacity=".15"/>')
    places = _places(curve.steps, curve.mean, x, y)
    dashes = ' stroke-dasharray="6 4"' if one.dashed else ""
    line = f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="1.8"{dashes}/>'
    parts.append(line)
    if one.points or len(places) == 1:
        parts += [f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3" fill="{colour}"/>' for p in places]
    return "".join(parts)


def _places(steps: np.ndarray, values: np.ndarray, x: _Scale, y: _Scale) -> list[str]:
    return [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(steps, values, strict=True)]


def _colour(one: Series) -> str:
    return COLOURS[one.colour % len(COLOURS)]


def _number(value: float) -> str:
    return f"{value:.3g}"
