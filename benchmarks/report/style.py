"""What the pictures share: a colour for every provider, bars in groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

COLOURS = {
    "reference": "#888888", "eager": "#e69f00", "compile": "#56b4e9", "portable": "#009e73", "triton": "#0072b2",
    "bare": "#cccccc", "bound": "#000000",
}  # fmt: skip
_OTHERS = ("#cc79a7", "#d55e00", "#b3b300", "#7f5fa0")

Groups = Mapping[str, Mapping[str, float]]
"""Label → provider → length of the bar."""


def colours(providers: Iterable[str]) -> dict[str, str]:
    """Provider → colour: known ones in the order of their table, then the others."""
    providers = set(providers)
    known = [p for p in COLOURS if p in providers]
    others = sorted(providers - set(COLOURS))
    return {p: COLOURS[p] for p in known} | {p: _OTHERS[i % len(_OTHERS)] for i, p in enumerate(others)}


def bars(axes: Any, groups: Groups) -> None:
    """Horizontal bars from top to bottom, the label at the first of each group."""
    flat = [(label, p, length) for label, found in groups.items() for p, length in found.items()]
    labels = [label if p == next(iter(groups[label])) else "" for label, p, _ in flat]
    shades = colours(p for _, p, _ in flat)
    places = list(range(len(flat), 0, -1))
    axes.barh(places, [length for *_, length in flat], color=[shades[p] for _, p, _ in flat])
    axes.set_yticks(places, labels, fontsize=6)
    axes.margins(y=0.01)


def legend(axes: Any, groups: Groups, plt: Any) -> None:
    """Which colour is whose."""
    shades = colours(p for found in groups.values() for p in found)
    axes.legend(handles=[plt.Rectangle((0, 0), 1, 1, color=c, label=p) for p, c in shades.items()], fontsize=7)
