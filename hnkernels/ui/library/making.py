"""Tabs that make something new of a network: another format, a mixture, a merged model, a LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from hnkernels.home.folder import EMBEDDED
from hnkernels.home.library import CONTEXT, WEIGHTS, Entry, making
from hnkernels.home.library.entry import NETWORKS
from hnkernels.ui.downloads import offered
from hnkernels.ui.library import html
from hnkernels.ui.library.tab import Action, Done, Tab, Updates, button, name_box, named, numbers, one_each


class _OfContext(Tab):
    """A tab that only context hypernetworks have."""

    def fits(self, entry: Entry) -> bool:
        return entry.facts.kind == CONTEXT


class Convert(_OfContext):
    """The other format."""

    title = "Convert"

    def build(self) -> None:
        with gr.Row():
            formats = [(".pt, for A1111", ".pt"), (".safetensors", ".safetensors")]
            self.format = gr.Radio(formats, label="To", value=".pt")
            self.name = name_box("the same")
        self.convert = button("Convert")

    def fresh(self, entry: Entry) -> Updates:
        other = ".safetensors" if entry.files[0].suffix.lower() == ".pt" else ".pt"
        return {self.format: other, self.name: ""}

    def actions(self) -> Sequence[Action]:
        return (Action([self.convert.click], self._convert, [self.format, self.name]),)

    def _convert(self, key: str, extension: str, name: str) -> Done:
        return Done(f"Wrote {making.convert(self.library, key, extension, name).name}.", key)


class Mix(_OfContext):
    """A network between two, or the mean of several."""

    title = "Mix"

    def build(self) -> None:
        gr.Markdown("Networks of one structure that share an origin, such as two snapshots of one training.")
        self.others = gr.Dropdown([], multiselect=True, label="Mix it with", filterable=True)
        self.between = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the other one")
        self.shares = gr.Textbox(
            label="Shares", placeholder="one per network, this one first; empty for equal ones", visible=False
        )
        self.name = name_box("made of theirs")
        self.mix = button("Mix")
        self.others.change(
            lambda others: (gr.update(visible=len(others) < 2), gr.update(visible=len(others) > 1)),
            self.others,
            [self.between, self.shares],
            api_visibility="private",
            show_progress="hidden",
        )

    def fresh(self, entry: Entry) -> Updates:
        return {self.name: ""}

    def listing(self, entries: Sequence[Entry]) -> Updates:
        return {self.others: gr.update(choices=_context(entries))}

    def actions(self) -> Sequence[Action]:
        return (Action([self.mix.click], self._mix, [self.others, self.between, self.shares, self.name]),)

    def _mix(self, key: str, others: list[str], t: float, shares: str, name: str) -> Done:
        if len(others) == 1:
            file = making.interpolate(self.library, key, others[0], t, name)
        else:
            file = making.average(self.library, [key, *others], numbers(shares, "shares"), name)
        return Done(f"Wrote {file.name}.", f"{NETWORKS}/{file.stem}")


class Merge(_OfContext):
    """A model with networks in its own weights."""

    title = "Merge"

    def build(self) -> None:
        gr.Markdown(
            "A copy of a model that has networks without activation and LayerNorm in its own weights: this one, and "
            "those after it, each acting on what the one before it gives."
        )
        with gr.Row():
            self.model = gr.Dropdown([EMBEDDED], value=EMBEDDED, label="Model")
            self.others = gr.Dropdown([], multiselect=True, label="After it", filterable=True)
            self.strengths = gr.Textbox(label="Strengths", placeholder="one per network, this one first; empty for 1")
            self.name = gr.Textbox(label="Name of the new model", max_length=100)
        self.merge = button("Merge")

    def fresh(self, entry: Entry) -> Updates:
        return {self.name: "", self.strengths: ""}

    def listing(self, entries: Sequence[Entry]) -> Updates:
        models = list(self.library.home.models())
        return {self.model: gr.update(choices=models), self.others: gr.update(choices=_context(entries))}

    def actions(self) -> Sequence[Action]:
        return (Action([self.merge.click], self._merge, [self.model, self.others, self.strengths, self.name]),)

    def _merge(self, key: str, model: str, others: list[str], strengths: str, name: str) -> Done:
        keys = [key, *others]
        given = one_each(strengths, "strengths", keys, "networks")
        folder = making.merge(self.library, keys, given, model, name)
        nets = " and ".join(map(named, keys))
        weights = "its weights" if len(keys) == 1 else "its weights, in this order"
        return Done(f"Made the model {folder.name}: {model} with {nets} in {weights}.", key)


class Lora(_OfContext):
    """A LoRA that is close to a network."""

    title = "LoRA"

    def build(self) -> None:
        gr.Markdown("A network without activation and LayerNorm as a LoRA, and how close that comes.")
        with gr.Row():
            self.model = gr.Dropdown([EMBEDDED], value=EMBEDDED, label="For the model")
            self.rank = gr.Number(16, label="Rank", precision=0, minimum=1)
            self.strength = gr.Number(1.0, label="Strength at weight 1", step=0.1)
        self.name = name_box("that of the network")
        self.biases = gr.Checkbox(label="Keep the constants on V, as biases that only diffusers reads")
        self.export = button("Export as LoRA")
        self.errors = gr.HTML(css_template=html.TABLE_CSS, js_on_load=None, apply_default_css=False)
        self.file = _lora_file()

    def fresh(self, entry: Entry) -> Updates:
        return {self.name: "", self.errors: "", self.file: gr.update(value=None, visible=False)}

    def listing(self, entries: Sequence[Entry]) -> Updates:
        return {self.model: gr.update(choices=list(self.library.home.models()))}

    def actions(self) -> Sequence[Action]:
        inputs = [self.model, self.rank, self.strength, self.biases, self.name]
        return (Action([self.export.click], self._export, inputs),)

    def _export(self, key: str, model: str, rank: int, strength: float, biases: bool, name: str) -> Done:
        file, report = making.export_lora(self.library, key, model, rank, strength, name, biases=biases)
        shown: Updates = {
            self.errors: html.lora_errors(report),
            self.file: gr.update(value=offered([file])[0], visible=True),
        }
        return Done(f"Wrote {file.parent.name}/{file.name}.", key, shown)


class StyleLora(Tab):
    """What a weight hypernetwork generates for a style, as a LoRA."""

    title = "LoRA of a style"

    def build(self) -> None:
        with gr.Row():
            self.styles = gr.Dropdown([], multiselect=True, label="Styles")
            self.shares = gr.Textbox(label="Shares", placeholder="one per style; empty for 1 each")
            self.strength = gr.Number(1.0, label="Strength at weight 1", step=0.1)
        self.name = name_box("that of the network")
        self.generate = button("Generate LoRA")
        self.file = _lora_file()

    def fits(self, entry: Entry) -> bool:
        return entry.facts.kind == WEIGHTS and bool(entry.facts.styles)

    def fresh(self, entry: Entry) -> Updates:
        return {
            self.styles: gr.update(choices=list(entry.facts.styles), value=[]),
            self.shares: "",
            self.name: "",
            self.file: gr.update(value=None, visible=False),
        }

    def actions(self) -> Sequence[Action]:
        inputs = [self.styles, self.shares, self.strength, self.name]
        return (Action([self.generate.click], self._generate, inputs),)

    def _generate(self, key: str, styles: list[str], shares: str, strength: float, name: str) -> Done:
        given = dict(zip(styles, one_each(shares, "shares", styles, "styles"), strict=True))
        file = making.generate_lora(self.library, key, given, strength, name)
        shown: Updates = {self.file: gr.update(value=offered([file])[0], visible=True)}
        return Done(f"Wrote {file.parent.name}/{file.name}.", key, shown)


def _context(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Names and keys of the context hypernetworks."""
    return [(one.key.removeprefix(f"{NETWORKS}/"), one.key) for one in entries if one.facts.kind == CONTEXT]


def _lora_file() -> Any:
    return gr.File(label="The LoRA", interactive=False, visible=False)
