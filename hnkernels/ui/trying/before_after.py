"""The tab Before and after: one picture without the networks and with them, under a slider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr
from PIL import Image

from hnkernels.drawing.request import DrawRequest
from hnkernels.errors import InputError
from hnkernels.ui.trying.drawings import FOLLOWED, Drawings
from hnkernels.ui.trying.jobs import Job, comparison
from hnkernels.ui.trying.shown import large


class BeforeAfterTab:
    """Both pictures, and a slider of its own for those who use the keyboard."""

    def __init__(self, drawings: Drawings):
        gr.Markdown("The same seed without the networks, and with them as they are chosen above.")
        draw = gr.Button("Draw before and after", variant="primary", size="sm", elem_id="compare")
        both = gr.ImageSlider(
            label="Before on the left, after on the right",
            format="png",
            interactive=False,
            elem_id="both",
            max_height=420,
            visible=False,
        )
        place = gr.Slider(0, 100, value=50, step=1, label="Where before ends", elem_id="place", visible=False)
        drawings.on(draw.click, _compared, [], both, _shown).then(
            lambda both: gr.Slider(visible=both is not None), inputs=both, outputs=place, **FOLLOWED
        )
        place.input(
            lambda place: gr.ImageSlider(slider_position=place),
            inputs=place,
            outputs=both,
            trigger_mode="always_last",
            **FOLLOWED,
        )


def _compared(request: Callable[[], DrawRequest]) -> Job:
    after = request()
    if not after.networks:
        raise InputError("no network is chosen; choose one under Networks, or call one in the prompt")
    after = replace(after, batch=1, prompt=after.text)
    return comparison(replace(after, networks=tuple(replace(use, strength=0.0) for use in after.networks)), after)


def _shown(both: list[Image.Image]) -> Any:
    return gr.ImageSlider((large(both[0]), large(both[1])), visible=True)
