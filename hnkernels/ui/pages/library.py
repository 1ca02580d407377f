"""The page Library: every network of the home, what it is, and what can be done with it."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from hnkernels.checkpoint.files import EXTENSIONS
from hnkernels.errors import InputError
from hnkernels.home.folder import EMBEDDED, Home
from hnkernels.home.library import CONTEXT, WEIGHTS, Library, changing, incoming, making, matching, ordered
from hnkernels.home.library.entry import NETWORKS
from hnkernels.ui.downloads import forget, offered
from hnkernels.ui.events import FAULTS
from hnkernels.ui.library import html

Updates = dict[Any, Any]
"""Component → what it is to show."""

_BUTTON = 180  # pixels
_SAID_CSS = """
position: sticky; bottom: 0; z-index: 5; background: var(--body-background-fill);
p { margin: 0; padding: 0.5rem 0; }
"""


def build(home: Home) -> None:
    """Lays the page out, and ties it to the home."""
    _Page(home).build()


class _Page:
    """The components of the page, and what happens when they are used."""

    def __init__(self, home: Home):
        self.home = home
        self.library = Library(home)

    def build(self) -> None:
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
            with gr.Tabs() as self.tabs:
                self._name_tab()
                self._notes_tab()
                self._convert_tab()
                self._mix_tab()
                self._merge_tab()
                self._lora_tab()
                self._style_tab()
                self._files_tab()
                self._delete_tab()
        self._bin()
        self.said = gr.HTML(css_template=_SAID_CSS, js_on_load=None, apply_default_css=False, elem_id="said")
        self.view = [self.order, self.chosen, self.search]
        self._listen()

    # What is on the tabs. Those that not every network has begin invisible: Gradio overlooks that one is hidden at the
    # moment when the tabs first appear.

    def _name_tab(self) -> None:
        with gr.Tab("Name", id="name") as self.name_tab:
            with gr.Column() as self.renaming:
                gr.Markdown(
                    "All files get the new name, by which A1111 lists the network and prompts call it. "
                    "The name inside the files stays, and so does their hash."
                )
                self.new_name = gr.Textbox(label="New name", max_length=100)
                self.rename = _button("Rename")
            self.copy_name = _name_box("the same, with a number", "Name of a copy")
            self.copy = _button("Copy")

    def _notes_tab(self) -> None:
        with gr.Tab("Notes", id="notes", visible=False) as self.notes_tab:
            self.notes = gr.Textbox(label="Notes", lines=3, max_lines=12, max_length=10_000)
            self.save_notes = _button("Save notes")

    def _convert_tab(self) -> None:
        with gr.Tab("Convert", id="convert", visible=False) as self.convert_tab:
            with gr.Row():
                formats = [(".pt, for A1111", ".pt"), (".safetensors", ".safetensors")]
                self.format = gr.Radio(formats, label="To", value=".pt")
                self.convert_name = _name_box("the same")
            self.convert = _button("Convert")

    def _mix_tab(self) -> None:
        with gr.Tab("Mix", id="mix", visible=False) as self.mix_tab:
            gr.Markdown("Networks of one structure that share an origin, such as two snapshots of one training.")
            self.others = gr.Dropdown([], multiselect=True, label="Mix it with", filterable=True)
            self.between = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the other one")
            self.shares = gr.Textbox(
                label="Shares", placeholder="one per network, this one first; empty for equal ones", visible=False
            )
            self.mix_name = _name_box("made of theirs")
            self.mix = _button("Mix")

    def _merge_tab(self) -> None:
        with gr.Tab("Merge", id="merge", visible=False) as self.merge_tab:
            gr.Markdown("A copy of a model that has a network without activation and LayerNorm in its own weights.")
            with gr.Row():
                self.merge_model = gr.Dropdown([EMBEDDED], value=EMBEDDED, label="Model")
                self.merge_strength = gr.Number(1.0, label="Strength", step=0.1)
                self.merge_name = gr.Textbox(label="Name of the new model", max_length=100)
            self.merge = _button("Merge")

    def _lora_tab(self) -> None:
        with gr.Tab("LoRA", id="lora", visible=False) as self.lora_tab:
            gr.Markdown("A network without activation and LayerNorm as a LoRA, and how close that comes.")
            with gr.Row():
                self.lora_model = gr.Dropdown([EMBEDDED], value=EMBEDDED, label="For the model")
                self.lora_rank = gr.Number(16, label="Rank", precision=0, minimum=1)
                self.lora_strength = gr.Number(1.0, label="Strength at weight 1", step=0.1)
            self.lora_name = _name_box("that of the network")
            self.lora_biases = gr.Checkbox(label="Keep the constants on V, as biases that only diffusers reads")
            self.lora = _button("Export as LoRA")
            self.lora_errors = gr.HTML(css_template=html.TABLE_CSS, js_on_load=None, apply_default_css=False)
            self.lora_file = gr.File(label="The LoRA", interactive=False, visible=False)

    def _style_tab(self) -> None:
        with gr.Tab("LoRA of a style", id="style", visible=False) as self.style_tab:
            with gr.Row():
                self.styles = gr.Dropdown([], multiselect=True, label="Styles")
                self.style_shares = gr.Textbox(label="Shares", placeholder="one per style; empty for 1 each")
                self.style_strength = gr.Number(1.0, label="Strength at weight 1", step=0.1)
            self.style_name = _name_box("that of the network")
            self.style = _button("Generate LoRA")
            self.style_file = gr.File(label="The LoRA", interactive=False, visible=False)

    def _files_tab(self) -> None:
        with gr.Tab("Download", id="files") as self.files_tab:
            self.files = gr.File(label="Files", interactive=False)

    def _delete_tab(self) -> None:
        with gr.Tab("Delete", id="delete", visible=False) as self.delete_tab:
            self.delete = _button("Delete …")
            with gr.Column(visible=False) as self.confirmation:
                self.question = gr.HTML(js_on_load=None, apply_default_css=False)
                with gr.Row():
                    self.confirm = gr.Button("Move to the bin", variant="stop", scale=0, min_width=_BUTTON)
                    self.keep = gr.Button("Keep", scale=0, min_width=_BUTTON)

    def _bin(self) -> None:
        with gr.Accordion("Bin", open=False):
            self.deleted = gr.Dropdown([], label="Deleted networks")
            self.restore = _button("Bring back")

    # What happens

    def _listen(self) -> None:
        on = functools.partial(gr.on, api_visibility="private", show_progress="hidden")
        listing = [self.table, self.others, self.merge_model, self.lora_model, self.deleted]
        panel = [
            *(
                self.chosen,
                self.panel,
                self.details,
                self.tabs,
                self.renaming,
                self.new_name,
                self.copy_name,
                self.notes,
            ),
            *(self.notes_tab, self.convert_tab, self.mix_tab, self.merge_tab, self.lora_tab, self.style_tab),
            *(self.delete_tab, self.files_tab, self.convert_name, self.mix_name, self.merge_name, self.lora_name),
            *(self.style_name, self.styles, self.style_shares, self.lora_errors, self.lora_file, self.style_file),
            *(self.files, self.confirmation, self.format),
        ]
        on(None, self._list, None, [*listing, self.said])
        on(self.search.change, self._searched, self.view, listing, trigger_mode="always_last")
        on(self.table.click, self._sorted, self.view, [self.table, self.order])
        on(self.table.select, self._selected, self.view, [*panel, *listing, self.said])
        on(self.others.change, self._others_chosen, self.others, [self.between, self.shares])
        on(self.files_tab.select, self._offer, self.chosen, [self.files, self.said])
        on(self.delete.click, self._ask, self.chosen, [self.confirmation, self.question])
        on(self.keep.click, lambda: gr.update(visible=False), None, self.confirmation)
        everything = [*listing, *panel, self.upload, self.said]
        for triggers, act, inputs in (
            ([self.rename.click, self.new_name.submit], self._rename, [self.new_name]),
            ([self.copy.click, self.copy_name.submit], self._copy, [self.copy_name]),
            ([self.save_notes.click], self._annotate, [self.notes]),
            ([self.convert.click], self._convert, [self.format, self.convert_name]),
            ([self.mix.click], self._mix, [self.others, self.between, self.shares, self.mix_name]),
            ([self.merge.click], self._merge, [self.merge_model, self.merge_strength, self.merge_name]),
            (
                [self.lora.click],
                self._export,
                [self.lora_model, self.lora_rank, self.lora_strength, self.lora_biases, self.lora_name],
            ),
            (
                [self.style.click],
                self._generate,
                [self.styles, self.style_shares, self.style_strength, self.style_name],
            ),
            ([self.confirm.click], self._delete, []),
            ([self.restore.click], self._restore, [self.deleted]),
            ([self.upload.upload], self._take_in, [self.upload]),
        ):
            on(
                triggers,
                self._doing(act),
                [*self.view, *inputs],
                everything,
                show_progress="minimal",
                show_progress_on=self.said,
            )

    def _doing(self, act: Callable[..., tuple[str, str | None, Updates]]) -> Callable[..., Iterator[Updates]]:
        """A handler that runs an action, and says in a sentence what came of it.

        Args:
            act: takes the key of the chosen network and the inputs; gives a sentence, the network to choose then, and
                updates that go before those of the panel.
        """

        def handler(order: tuple[str, bool], chosen: str | None, search: str, *values: Any) -> Iterator[Updates]:
            yield {self.said: html.announcement("Working …")}
            try:
                said, key, extra = act(chosen, *values)
                updates = {**self._panel(key), **extra, self.said: html.announcement(said)}
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
        context = [
            (entry.key.removeprefix(f"{NETWORKS}/"), entry.key) for entry in everything if entry.facts.kind == CONTEXT
        ]
        models = list(self.home.models())
        deleted = [
            (f"{one.name}, deleted {time.strftime('%Y-%m-%d %H:%M', time.localtime(one.time))}", one.key)
            for one in self.library.bin.all()
            if one.part == NETWORKS
        ]
        return {
            self.table: html.table(shown, bool(everything), chosen, *order),
            self.others: gr.update(choices=context),
            self.merge_model: gr.update(choices=models),
            self.lora_model: gr.update(choices=models),
            self.deleted: gr.update(choices=deleted, value=deleted[0][1] if deleted else None),
        }

    def _panel(self, key: str | None) -> Updates:
        """The details of a network and its tabs, empty as at first; hidden if none is chosen."""
        if key is None:
            return {self.chosen: None, self.panel: gr.update(visible=False)}
        entry = self.library.entry(key)
        facts = entry.facts
        context = facts.kind == CONTEXT
        return {
            self.chosen: key,
            self.panel: gr.update(visible=True),
            self.details: html.details(entry),
            self.renaming: gr.update(visible=entry.own),
            self.new_name: entry.name,
            self.notes: entry.notes,
            self.notes_tab: gr.update(visible=entry.own),
            self.delete_tab: gr.update(visible=entry.own),
            **{tab: gr.update(visible=context) for tab in self._context_tabs()},
            self.style_tab: gr.update(visible=facts.kind == WEIGHTS and bool(facts.styles)),
            self.styles: gr.update(choices=list(facts.styles), value=[]),
            self.format: ".safetensors" if entry.files[0].suffix.lower() == ".pt" else ".pt",
            **dict.fromkeys(
                (self.copy_name, self.convert_name, self.mix_name, self.merge_name, self.lora_name, self.style_name), ""
            ),
            self.style_shares: "",
            self.lora_errors: "",
            self.lora_file: gr.update(value=None, visible=False),
            self.style_file: gr.update(value=None, visible=False),
            self.files: None,
            self.confirmation: gr.update(visible=False),
        }

    def _context_tabs(self) -> tuple[gr.Tab, ...]:
        return self.convert_tab, self.mix_tab, self.merge_tab, self.lora_tab

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
            return {**self._panel(event.key), self.tabs: gr.update(selected="name"), self.said: ""}
        except FAULTS as error:
            return {
                **self._listing(search, order, None),
                **self._panel(None),
                self.said: html.announcement(self._plain(error), fault=True),
            }

    def _others_chosen(self, others: list[str]) -> Updates:
        several = len(others) > 1
        return {self.between: gr.update(visible=not several), self.shares: gr.update(visible=several)}

    def _offer(self, chosen: str | None) -> Updates:
        try:
            entry = self.library.entry(chosen)
            return {self.files: offered((*entry.files, *entry.beside))}
        except FAULTS as error:
            return {self.said: html.announcement(self._plain(error), fault=True)}

    def _ask(self, chosen: str | None) -> Updates:
        name = (chosen or "").rpartition("/")[2]
        return {
            self.confirmation: gr.update(visible=True),
            self.question: f"<p>Move all files of {html.text(name)} to the bin? They can be brought back.</p>",
        }

    # What can be done; each gives a sentence, the network to choose then, and further updates

    def _rename(self, key: str, name: str) -> tuple[str, str | None, Updates]:
        new = changing.rename(self.library, key, name)
        return f"Renamed {_named(key)} to {name}.", new, {}

    def _copy(self, key: str, name: str) -> tuple[str, str | None, Updates]:
        new = changing.copy(self.library, key, name)
        return f"Copied {_named(key)} to {_named(new)}.", new, {}

    def _annotate(self, key: str, text: str) -> tuple[str, str | None, Updates]:
        changing.annotate(self.library, key, text)
        return f"Saved the notes on {_named(key)}.", key, {}

    def _convert(self, key: str, extension: str, name: str) -> tuple[str, str | None, Updates]:
        return f"Wrote {making.convert(self.library, key, extension, name).name}.", key, {}

    def _mix(self, key: str, others: list[str], t: float, shares: str, name: str) -> tuple[str, str | None, Updates]:
        if len(others) == 1:
            file = making.interpolate(self.library, key, others[0], t, name)
        else:
            file = making.average(self.library, [key, *others], _numbers(shares), name)
        return f"Wrote {file.name}.", f"{NETWORKS}/{file.stem}", {}

    def _merge(self, key: str, model: str, strength: float, name: str) -> tuple[str, str | None, Updates]:
        folder = making.merge(self.library, [key], [strength], model, name)
        return f"Made the model {folder.name}: {model} with {_named(key)} in its weights.", key, {}

    def _export(
        self, key: str, model: str, rank: int, strength: float, biases: bool, name: str
    ) -> tuple[str, str | None, Updates]:
        file, report = making.export_lora(self.library, key, model, rank, strength, name, biases=biases)
        shown = {
            self.lora_errors: html.lora_errors(report),
            self.lora_file: gr.update(value=offered([file])[0], visible=True),
        }
        return f"Wrote {file.parent.name}/{file.name}.", key, shown

    def _generate(
        self, key: str, styles: list[str], shares: str, strength: float, name: str
    ) -> tuple[str, str | None, Updates]:
        numbers = _numbers(shares) or [1.0] * len(styles)
        if len(numbers) != len(styles):
            raise InputError(f"{len(numbers)} shares are given for {len(styles)} styles; give one each, or none")
        file = making.generate_lora(self.library, key, dict(zip(styles, numbers, strict=True)), strength, name)
        shown = {self.style_file: gr.update(value=offered([file])[0], visible=True)}
        return f"Wrote {file.parent.name}/{file.name}.", key, shown

    def _delete(self, key: str) -> tuple[str, str | None, Updates]:
        changing.delete(self.library, key)
        return f"Moved {_named(key)} to the bin, from where it can be brought back.", None, {}

    def _restore(self, chosen: str | None, deleted: str | None) -> tuple[str, str | None, Updates]:
        if deleted is None:
            raise InputError("there is nothing in the bin")
        files = self.library.bin.restore(deleted)
        return f"Brought back {' and '.join(file.name for file in files)}.", chosen, {}

    def _take_in(self, chosen: str | None, files: list[str]) -> tuple[str, str | None, Updates]:
        said, any_taken = [], False
        for file in map(Path, files or ()):
            try:
                chosen, any_taken = incoming.take_in(self.library, file), True
                said.append(f"Took in {file.name} as {_named(chosen)}.")
            except FAULTS as error:
                said.append(self._plain(error).rstrip(".") + ".")
            finally:
                forget(file)
        if not any_taken:
            raise InputError(" ".join(said) or "no file has arrived")
        return " ".join(said), chosen, {}


def _button(label: str) -> gr.Button:
    """A button on a line of its own, no wider than it has to be."""
    with gr.Row():
        return gr.Button(label, scale=0, min_width=_BUTTON)


def _name_box(empty: str, label: str = "Name") -> gr.Textbox:
    return gr.Textbox(label=label, placeholder=f"empty: {empty}", max_length=100)


def _named(key: str) -> str:
    return key.rpartition("/")[2]


def _numbers(text: str) -> list[float] | None:
    """Numbers with commas or spaces between them; ``None`` if there are none."""
    try:
        return [float(word) for word in text.replace(",", " ").split()] or None
    except ValueError:
        raise InputError(f"shares are numbers with commas between them, such as 1, 0.5, not {text!r}") from None
