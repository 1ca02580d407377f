"""The panel below the prompt: how strongly, where and when the hypernetworks of the prompt act."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr
from modules import scripts  # the web UI's own

from hnkernels.integrations.webui import settings
from hnkernels.integrations.webui.acting import INFOTEXT, Acting
from hnkernels.integrations.webui.network import HASHES, SESSION, commented
from hnkernels.integrations.webui.session import is_forge

_WHERE = '{"up": {"block_3": 0.5, "attn2": {"k": 0}}}'


class HypernetworkScript(scripts.Script):
    """The web UI's interface: one object for text to picture, and one for picture to picture."""

    def title(self) -> str:
        return "Hypernetworks (hnkernels)"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        with gr.Accordion(self.title(), open=False):
            gr.HTML("For the hypernetworks in the prompt: &lt;hypernet:name:0.7&gt;")
            strength = gr.Slider(0, 2, value=1.0, step=0.01, label="Strength of all", elem_id=self.elem_id("strength"))
            where = gr.Textbox("", label="Strengths by place", placeholder=_WHERE, elem_id=self.elem_id("where"))
            with gr.Row():
                start = gr.Slider(0, 1, value=0.0, step=0.01, label="From this share of the steps on")
                end = gr.Slider(0, 1, value=1.0, step=0.01, label="Up to this one")
        controls = {"strength": strength, "where": where, "start": start, "end": end}
        self.infotext_fields = [(control, partial(Acting.read, name)) for name, control in controls.items()]
        self.paste_field_names = list(INFOTEXT.values())
        return list(controls.values())

    def process(self, p: Any, *values: Any) -> None:
        """Called before the first batch of a picture or of a cell of a grid."""
        if not settings.enabled():
            return
        given = dict(zip(INFOTEXT, values, strict=True))
        given |= {name: value for name in INFOTEXT if (value := getattr(p, f"hnkernels_{name}", None)) is not None}
        for written in (*INFOTEXT.values(), HASHES):  # by an earlier cell of a grid: all cells share one dict
            p.extra_generation_params.pop(written, None)
        p.hnkernels = None
        with commented(p):
            p.hnkernels = Acting(float(given["strength"]), given["where"], float(given["start"]), float(given["end"]))
        p.extra_generation_params.update(p.hnkernels.infotext())

    def process_before_every_sampling(self, p: Any, *values: Any, **told: Any) -> None:
        """Called by Forge when it has made the UNet of a sampling."""
        if settings.enabled() and is_forge(p.sd_model):
            from backend.patcher.lora import load_lora, model_lora_keys_unet  # Forge's own

            with commented(p):
                SESSION.patch(
                    p.sd_model.forge_objects, lambda model, lora: load_lora(lora, model_lora_keys_unet(model, {}))[0]
                )

    def postprocess(self, p: Any, processed: Any, *values: Any) -> None:
        """Called after the last batch, where the web UI has not called ``deactivate``: without a tag in the prompt."""
        if settings.enabled():
            SESSION.end()
