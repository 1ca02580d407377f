"""What every tab of the page Library is: fields, a button, and what is done with a network when it is clicked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gradio as gr

from hnkernels.errors import InputError
from hnkernels.home.library import Entry, Library
from hnkernels.ui.style import BUTTON

Updates = dict[Any, Any]
"""Component → what it is to show."""


@dataclass(frozen=True)
class Done:
    """What came of an action.

    Attributes:
        said: a sentence.
        key: of the network that is chosen from then on; ``None`` for none.
        shown: updates that go before those of an empty tab.
    """

    said: str
    key: str | None
    shown: Updates | None = None


@dataclass(frozen=True)
class Action:
    """Something that a tab does with the chosen network.

    Attributes:
        triggers: the events that start it.
        act: takes the key of the network and the values of the inputs.
        inputs: components.
    """

    triggers: Sequence[Any]
    act: Callable[..., Done]
    inputs: Sequence[Any] = ()


class Tab(ABC):
    """A tab of a network's panel.

    Args:
        library: the networks that it works on.

    Attributes:
        title: what is written on it.
        for_all: whether every network has it.
    """

    title: ClassVar[str]

    def __init__(self, library: Library):
        self.library = library
        self.for_all = type(self).fits is Tab.fits
        # A tab that not every network has begins invisible: Gradio overlooks that one is hidden at the moment when the
        # tabs first appear.
        with gr.Tab(self.title, id=self.title, visible=self.for_all) as self.tab:
            self.build()

    @abstractmethod
    def build(self) -> None:
        """Lays the components out."""

    def fits(self, entry: Entry) -> bool:
        """Whether a network has this tab."""
        return True

    def actions(self) -> Sequence[Action]:
        """What can be done."""
        return ()

    def fresh(self, entry: Entry) -> Updates:
        """The tab of a network that was chosen just now: its fields empty as at first."""
        return {}

    def listing(self, entries: Sequence[Entry]) -> Updates:
        """What the tab shows of all networks, after one has come, gone or changed."""
        return {}

    def components(self) -> list[Any]:
        """Everything that the tab may change."""
        return [one for one in vars(self).values() if isinstance(one, gr.blocks.Block)]

    def shown(self, entry: Entry) -> Updates:
        """The tab as it is for a network."""
        visible = {} if self.for_all else {self.tab: gr.update(visible=self.fits(entry))}
        return {**visible, **self.fresh(entry)}


def button(label: str) -> gr.Button:
    """A button on a line of its own, no wider than it has to be."""
    with gr.Row():
        return gr.Button(label, scale=0, min_width=BUTTON)


def name_box(empty: str, label: str = "Name") -> gr.Textbox:
    """A field for the name of something new, which says what an empty one gives."""
    return gr.Textbox(label=label, placeholder=f"empty: {empty}", max_length=100)


def named(key: str) -> str:
    """The name of a network, of its key."""
    return key.rpartition("/")[2]


def numbers(text: str, what: str) -> list[float] | None:
    """Numbers with commas or spaces between them; ``None`` if there are none.

    Args:
        text: what was typed.
        what: what the numbers are, in the plural.

    Raises:
        ValueError: it is something else.
    """
    try:
        return [float(word) for word in text.replace(",", " ").split()] or None
    except ValueError:
        raise InputError(f"{what} are numbers with commas between them, such as 1, 0.5, not {text!r}") from None


def one_each(text: str, what: str, names: Sequence[str], of: str) -> list[float]:
    """A number for every one of some names; 1 each where nothing was typed.

    Args:
        text: what was typed.
        what: what the numbers are, in the plural.
        names: what they are for.
        of: what those are, in the plural.

    Raises:
        ValueError: it is something else, or there are not as many.
    """
    given = numbers(text, what) or [1.0] * len(names)
    if len(given) != len(names):
        raise InputError(f"{len(given)} {what} are given for {len(names)} {of}; give one each, or none")
    return given
