"""The networks that a page offers, by name."""

from __future__ import annotations

from hnkernels.home.library.entry import Entry
from hnkernels.home.library.facts import CONTEXT, WEIGHTS
from hnkernels.home.library.library import Library


def networks(library: Library, kinds: tuple[str, ...] = (CONTEXT, WEIGHTS)) -> dict[str, Entry]:
    """The networks that can act in a picture, by names of their own: of equal ones the later get a number, those of
    runs after those of the home.

    Args:
        library: where they are.
        kinds: of networks.
    """
    found: dict[str, Entry] = {}
    for entry in sorted(library.all(), key=lambda entry: not entry.own):
        if entry.facts.problem or entry.facts.kind not in kinds:
            continue
        name, number = entry.name, 1
        while name in found:
            number += 1
            name = f"{entry.name}-{number}"
        found[name] = entry
    return found
