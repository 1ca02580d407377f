"""The page Library: every network of the home, what it is, and what can be done with it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from hnkernels.checkpoint.files import EXTENSIONS
from hnkernels.errors import InputError
from hnkernels.home.folder import Home
from hnkernels.home.library import Library, incoming, matching, ordered
from hnkernels.home.library.entry import NETWORKS
from hnkernels.ui.bin import BinPanel
from hnkernels.ui.downloads import forget
from hnkernels.ui.events import FAULTS
from hnkernels.ui.library import html, keeping, making
from hnkernels.ui.library.tab import Action, Done, Updates, named

_TABS: tuple[Any, ...] = (
    *(keeping.Name, keeping.Notes, making.Convert, making.Mix, making.Merge, making.Lora, making.StyleLora),
    *(keeping.Download, keeping.Delete),
)

_SAID_CSS = """
position: sticky; bottom: 0; z-index: 5; background: var(--body-background-fill);
p { margin: 0; padding: 0.5rem 0; }
"""


def build(home: Home) -> None:
    """Lays the page out, and ties it to the home."""
    _Page(home)


class _Page:
    """The components of the page, and what happens when they are used."""

    def __init__(self, home: Home):
        self.home = home
        self.library = Library(home)
        gr.Markdown("# Library")
        self.order = gr.State(("name", False))
        self.chosen = gr.State(None)
        with gr.Row():
            self.search = gr.Textbox(
                label="Search", placeholder="name, kind, base model, activation, notes", scale=3, min_width=280
            )
            self.upload = gr.File(
                label="Add files: .pt, .safetensors",
                file_count="multiple",
                file_types=list(EXTENSIONS),
                height=130,
                scale=2,
                min_width=280,
            )
        self.table = gr.HTML(
            css_template=html.TABLE_CSS, js_on_load=html.TABLE_JS, apply_default_css=False, elem_id="networks"
        )
        with gr.Column(visible=False, elem_id="network") as self.panel:
            self.details = gr.HTML(css_template=html.DETAILS_CSS, js_on_load=None, apply_default_css=False)
            with gr.Tabs() as self.bar:
                self.tabs = [tab(self.library) for tab in _TABS]
                self.name, *_, self.download, self.delete = self.tabs
        self.bin = BinPanel(self.library.bin, NETWORKS)
        self.said = gr.HTML(css_template=_SAID_CSS, js_on_load=None, apply_default_css=False, elem_id="said")
        self._listen()

    def _listen(self) -> None:
        on = functools.partial(gr.on, api_visibility="private", show_progress="hidden")
        view = [self.order, self.chosen, self.search]
        tabs = [component for tab in self.tabs for component in tab.components()]
        listing = [self.table, self.bin.deleted, *tabs]
        everything = [*listing, self.chosen, self.panel, self.details, self.bar, self.upload, self.said]
        on(None, self._list, None, [*listing, self.said])
        on(self.search.change, self._searched, view, listing, trigger_mode="always_last")
        on(self.table.click, self._sorted, view, [self.table, self.order])
        on(self.table.select, self._selected, view, everything)
        on(self.download.tab.select, self._offer, self.chosen, [self.download.files, self.said])
        on(self.delete.delete.click, lambda: gr.update(visible=True), None, self.delete.confirmation)
        on(self.delete.keep.click, lambda: gr.update(visible=False), None, self.delete.confirmation)
        own = (
            Action(
                [self.bin.restore.click],
                lambda key, deleted: Done(self.bin.bring_back(deleted), key),
                [self.bin.deleted],
            ),
            Action([self.bin.confirm.click], lambda key: Done(self.bin.empty(), key)),
            Action([self.upload.upload], self._take_in, [self.upload]),
        )
        for action in (*own, *(action for tab in self.tabs for action in tab.actions())):
            on(
                action.triggers,
                self._doing(action.act),
                [*view, *action.inputs],
                everything,
                show_progress="minimal",
                show_progress_on=self.said,
            )

    def _doing(self, act: Callable[..., Done]) -> Callable[..., Iterator[Updates]]:
        """A handler that runs an action, and says in a sentence what came of it."""

        def handler(order: tuple[str, bool], chosen: str | None, search: str, *values: Any) -> Iterator[Updates]:
            yield {self.said: html.announcement("Working …")}
            try:
                done = act(chosen, *values)
                key = done.key
                updates = {**self._panel(key), **(done.shown or {}), self.said: html.announcement(done.said)}
            except FAULTS as error:
                updates = {self.said: html.announcement(self._plain(error), fault=True)}
                key = chosen
                if chosen is not None and all(entry.key != chosen for entry in self.library.all()):
                    updates |= self._panel(None)
                    key = None
            yield {**self._listing(search, order, key), self.upload: None, **updates}

        return handler

    def _plain(self, error: Exception) -> str:
        """An error's sentence, with paths as they are within the home."""
        return str(error).replace(f"{self.home.path}{os.sep}", "")

    def _list(self) -> Updates:
        gone = "" if self.home.networks.is_dir() else f"The folder {self.home.networks} is gone; bring it back."
        return {
            **self._listing("", ("name", False), None),
            self.said: html.announcement(gone, fault=True) if gone else "",
        }

    def _listing(self, search: str, order: tuple[str, bool], chosen: str | None) -> Updates:
        everything = self.library.all()
        shown = ordered(matching(everything, search or ""), *order)
        updates: Updates = {
            self.table: html.table(shown, bool(everything), chosen, *order),
            self.bin.deleted: self.bin.listing(),
        }
        for tab in self.tabs:
            updates |= tab.listing(everything)
        return updates

    def _panel(self, key: str | None) -> Updates:
        """The details of a network and its tabs, empty as at first; hidden if none is chosen."""
        if key is None:
            return {self.chosen: None, self.panel: gr.update(visible=False)}
        entry = self.library.entry(key)
        updates: Updates = {
            self.chosen: key,
            self.panel: gr.update(visible=True),
            self.details: html.details(entry),
        }
        for tab in self.tabs:
            updates |= tab.shown(entry)
        return updates

    def _searched(self, order: tuple[str, bool], chosen: str | None, search: str) -> Updates:
        return self._listing(search, order, chosen)

    def _sorted(self, order: tuple[str, bool], chosen: str | None, search: str, event: gr.EventData) -> Updates:
        column = event.column
        order = (column, not order[1] if column == order[0] else False)
        try:
            return {self.table: self._listing(search, order, chosen)[self.table], self.order: order}
        except ValueError:
            return {}

    def _selected(self, order: tuple[str, bool], chosen: str | None, search: str, event: gr.EventData) -> Updates:
        try:
            return {**self._panel(event.key), self.bar: gr.update(selected=self.name.title), self.said: ""}
        except FAULTS as error:
            return {
                **self._listing(search, order, None),
                **self._panel(None),
                self.said: html.announcement(self._plain(error), fault=True),
            }

    def _offer(self, chosen: str | None) -> Updates:
        try:
            return {self.download.files: self.download.offer(chosen)}
        except FAULTS as error:
            return {self.said: html.announcement(self._plain(error), fault=True)}

    def _take_in(self, chosen: str | None, files: list[str]) -> Done:
        said, any_taken = [], False
        for file in map(Path, files or ()):
            try:
                chosen, any_taken = incoming.take_in(self.library, file), True
                said.append(f"Took in {file.name} as {named(chosen)}.")
            except FAULTS as error:
                said.append(self._plain(error).rstrip(".") + ".")
            finally:
                forget(file)
        if not any_taken:
            raise InputError(" ".join(said) or "no file has arrived")
        return Done(" ".join(said), chosen)
