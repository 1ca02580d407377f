"""Tabs for what a network is called and where it is: renamed, copied, noted on, downloaded, deleted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from hnkernels.home.library import Entry, changing
from hnkernels.ui.downloads import offered
from hnkernels.ui.library import html
from hnkernels.ui.library.tab import Action, Done, Tab, Updates, button, name_box, named
from hnkernels.ui.style import BUTTON


class Name(Tab):
    """A new name, or a copy under another."""

    title = "Name"

    def build(self) -> None:
        with gr.Column() as self.renaming:
            gr.Markdown(
                "All files get the new name, by which A1111 lists the network and prompts call it. "
                "The name inside the files stays, and so does their hash."
            )
            self.new_name = gr.Textbox(label="New name", max_length=100)
            self.rename = button("Rename")
        self.copy_name = name_box("the same, with a number", "Name of a copy")
        self.copy = button("Copy")

    def fresh(self, entry: Entry) -> Updates:
        return {self.renaming: gr.update(visible=entry.own), self.new_name: entry.name, self.copy_name: ""}

    def actions(self) -> Sequence[Action]:
        return (
            Action([self.rename.click, self.new_name.submit], self._rename, [self.new_name]),
            Action([self.copy.click, self.copy_name.submit], self._copy, [self.copy_name]),
        )

    def _rename(self, key: str, name: str) -> Done:
        new = changing.rename(self.library, key, name)
        return Done(f"Renamed {named(key)} to {name}.", new)

    def _copy(self, key: str, name: str) -> Done:
        new = changing.copy(self.library, key, name)
        return Done(f"Copied {named(key)} to {named(new)}.", new)


class Notes(Tab):
    """Whatever somebody wants to remember of a network."""

    title = "Notes"

    def build(self) -> None:
        self.notes = gr.Textbox(label="Notes", lines=3, max_lines=12, max_length=10_000)
        self.save = button("Save notes")

    def fits(self, entry: Entry) -> bool:
        return entry.own

    def fresh(self, entry: Entry) -> Updates:
        return {self.notes: entry.notes}

    def actions(self) -> Sequence[Action]:
        return (Action([self.save.click], self._annotate, [self.notes]),)

    def _annotate(self, key: str, text: str) -> Done:
        changing.annotate(self.library, key, text)
        return Done(f"Saved the notes on {named(key)}.", key)


class Download(Tab):
    """The files, which are offered when the tab is opened."""

    title = "Download"

    def build(self) -> None:
        self.files = gr.File(label="Files", interactive=False)

    def fresh(self, entry: Entry) -> Updates:
        return {self.files: None}

    def offer(self, key: str | None) -> Any:
        """The files of a network as links."""
        entry = self.library.entry(key)
        return offered((*entry.files, *entry.beside))


class Delete(Tab):
    """A question, and then the bin."""

    title = "Delete"

    def build(self) -> None:
        self.delete = button("Delete …")
        with gr.Column(visible=False) as self.confirmation:
            self.question = gr.HTML(js_on_load=None, apply_default_css=False)
            with gr.Row():
                self.confirm = gr.Button("Move to the bin", variant="stop", scale=0, min_width=BUTTON)
                self.keep = gr.Button("Keep", scale=0, min_width=BUTTON)

    def fits(self, entry: Entry) -> bool:
        return entry.own

    def fresh(self, entry: Entry) -> Updates:
        question = f"<p>Move all files of {html.text(entry.name)} to the bin? They can be brought back.</p>"
        return {self.confirmation: gr.update(visible=False), self.question: question}

    def actions(self) -> Sequence[Action]:
        return (Action([self.confirm.click], self._delete),)

    def _delete(self, key: str) -> Done:
        changing.delete(self.library, key)
        return Done(f"Moved {named(key)} to the bin, from where it can be brought back.", None)
