"""All that the page asks for, as one request; and a picture's settings, back into the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hnkernels.drawing.request import DrawRequest
from hnkernels.ui.trying.networks import NetworksTab
from hnkernels.ui.trying.words import Words


class Asked:
    """The words and the networks together.

    Attributes:
        fields: the components of both; ``request`` takes their values in this order.
    """

    def __init__(self, words: Words, networks: NetworksTab):
        self._words, self._networks = words, networks
        self.fields = [*words.fields, *networks.fields]

    def request(self, values: Sequence[Any]) -> DrawRequest:
        """What is to be drawn.

        Raises:
            ValueError: it cannot be drawn.
        """
        count = len(self._words.fields)
        known = self._networks.known()
        request = self._words.request(values[:count], self._networks.uses(values[count:], known)).called(
            {name: entry.file() for name, entry in known.items()}, f"there are: {', '.join(known) or 'none'}"
        )
        request.check()
        return request

    def filled(self, found: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
        """Updates of ``fields`` to the settings of a picture, and what of these is not here.

        Args:
            found: settings by the names of ``DrawRequest``.
        """
        words, no_words = self._words.filled(found)
        networks, no_networks = self._networks.filled(found.get("networks", []))
        return [*words, *networks], [*no_words, *no_networks]
