"""The bin on a page: what was deleted comes back from it, or goes for good."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from hnkernels.errors import InputError
from hnkernels.home.recycling import Bin, Deleted
from hnkernels.ui.style import BUTTON


class BinPanel:
    """A closed part of a page with what was deleted from one part of the home.

    Args:
        trash: the bin.
        part: the part of the home, ``"runs"`` or ``"networks"``.
    """

    def __init__(self, trash: Bin, part: str):
        self.trash = trash
        self.part = part
        with gr.Accordion("Bin", open=False):
            self.deleted = gr.Dropdown([], label=f"Deleted {part}")
            with gr.Row():
                self.restore = gr.Button("Bring back", scale=0, min_width=BUTTON, elem_id="restore")
                self.ask = gr.Button("Empty the bin …", scale=0, min_width=BUTTON)
            with gr.Column(visible=False) as self.confirmation:
                gr.Markdown(f"All deleted {part} are removed for good, with all their files.")
                with gr.Row():
                    self.confirm = gr.Button("Remove for good", variant="stop", scale=0, min_width=BUTTON)
                    self.keep = gr.Button("Keep them", scale=0, min_width=BUTTON)
        for button, visible in ((self.ask, True), (self.keep, False), (self.confirm, False)):
            button.click(
                lambda visible=visible: gr.update(visible=visible),
                None,
                self.confirmation,
                api_visibility="private",
                show_progress="hidden",
            )

    def listing(self) -> Any:
        """What the panel's list is to show: the latest first, and chosen."""
        choices = [(f"{one.name}, deleted {_minute(one)}", one.key) for one in self._mine()]
        return gr.update(choices=choices, value=choices[0][1] if choices else None)

    def bring_back(self, key: str | None) -> str:
        """Restores what is chosen, and says so.

        Raises:
            ValueError: nothing is chosen, or it cannot be restored.
        """
        if not key:
            raise InputError("there is nothing in the bin")
        files = self.trash.restore(key)
        return f"Brought back {' and '.join(file.name for file in files)}."

    def empty(self) -> str:
        """Removes what the list shows for good, and says so.

        Raises:
            ValueError: there is nothing, or it cannot be removed.
        """
        if not self._mine():
            raise InputError("there is nothing in the bin")
        removed = self.trash.empty(self.part)
        return f"Removed {', '.join(one.name for one in removed)} for good."

    def _mine(self) -> list[Deleted]:
        return [one for one in self.trash.all() if one.part == self.part]


def _minute(deleted: Deleted) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(deleted.time))
