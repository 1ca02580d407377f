"""The tab Networks: which hypernetworks act in the picture, and how strongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from hnkernels.drawing.request import DrawRequest, NetworkUse
from hnkernels.errors import InputError
from hnkernels.home.library.entry import Entry
from hnkernels.home.library.library import Library
from hnkernels.ui import offered

NONE = "none"
"""What a list shows when nothing of it is chosen."""

PLACES = 3
"""Networks at a time."""

_PARTS = {
    "down": "going down",
    "mid": "in the middle",
    "up": "going up",
    "attn1": "self-attention",
    "attn2": "cross-attention",
    "k": "K",
    "v": "V",
}
_ROW = 2 + len(_PARTS)  # fields of one place


class NetworksTab:
    """A few places for networks.

    Args:
        library: where the networks are.

    Attributes:
        fields: the components; ``uses`` takes their values in this order.
        names: those among them that choose a network.
    """

    def __init__(self, library: Library):
        self._library = library
        self.fields: list[Any] = []
        with gr.Row(equal_height=False):
            for number in range(1, PLACES + 1):
                with gr.Column(min_width=280), gr.Group():
                    name = gr.Dropdown([NONE], value=NONE, label=f"Network {number}", elem_id=f"network-{number}")
                    strength = gr.Slider(0, 2, value=1, step=0.05, label=f"Strength of network {number}")
                    with gr.Accordion(f"Parts of network {number}", open=False):
                        parts = [
                            gr.Slider(0, 2, value=1, step=0.05, label=f"{number}: times, {where}")
                            for where in _PARTS.values()
                        ]
                self.fields += [name, strength, *parts]
        self.names = self.fields[::_ROW]

    def known(self) -> dict[str, Entry]:
        """All networks that can be chosen, by name."""
        return offered.networks(self._library)

    def uses(self, values: Sequence[Any], known: Mapping[str, Entry]) -> list[NetworkUse]:
        """The networks that are chosen.

        Args:
            values: of ``fields``.
            known: see ``known``.

        Raises:
            ValueError: one is chosen twice, or is not there any more.
        """
        uses: list[NetworkUse] = []
        for start in range(0, len(values), _ROW):
            name, strength, *factors = values[start : start + _ROW]
            if name in (None, NONE):
                continue
            parts = {part: factor for part, factor in zip(_PARTS, factors, strict=True) if factor != 1}
            uses.append(NetworkUse(chosen(known, name).file(), name, strength, parts))
        names = [use.name for use in uses]
        if twice := [name for n, name in enumerate(names) if name in names[:n]]:
            raise InputError(f"{twice[0]} is chosen twice; choose another network, or none, in one of the places")
        return uses

    def filled(self, asked: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[str]]:
        """Updates of ``fields`` to the networks of a picture, and the names of those for which there is no place.

        Args:
            asked: networks as ``settings_in`` gives them.
        """
        known = list(self.known())
        networks = [one for one in asked if one["name"] in known][:PLACES]
        empty: dict[str, Any] = {"name": NONE, "strength": 1.0, "parts": {}}
        updates: list[Any] = []
        for one in [*networks, *[empty] * (PLACES - len(networks))]:
            updates += [gr.Dropdown([NONE, *known], value=one["name"]), one["strength"]]
            updates += [one["parts"].get(part, 1.0) for part in _PARTS]
        return updates, [one["name"] for one in asked if one not in networks]


def chosen(known: Mapping[str, Entry], name: str | None) -> Entry:
    """A network of a list.

    Raises:
        ValueError: none is chosen, or it is not there any more.
    """
    if name is None or name == NONE:
        raise InputError("no network is chosen; choose one")
    if name not in known:
        raise InputError(f"there is no network {name!r} any more; choose another, or reload the page for the list")
    return known[name]


def with_network(asks: DrawRequest, name: str, known: Mapping[str, Entry], **changes: Any) -> DrawRequest:
    """A request with a network in it, however it was chosen.

    Args:
        asks: what is asked for.
        name: of the network.
        known: the networks that can be chosen.
        changes: what is different about the network; see ``NetworkUse``.

    Raises:
        ValueError: none is chosen, or it is not there any more.
    """
    if name not in (use.name for use in asks.networks):
        return replace(asks, networks=(*asks.networks, NetworkUse(chosen(known, name).file(), name, **changes)))
    return asks.with_network(name, **changes) if changes else asks
