"""What to draw, in words, and the settings of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from hnkernels.drawing.request import BATCH, STEPS, DrawRequest, NetworkUse
from hnkernels.home.folder import Home


class Words:
    """The components above the tabs, with the buttons that draw and stop.

    Args:
        home: where the models are.

    Attributes:
        fields: those that a picture depends on; ``request`` takes their values in this order.
    """

    def __init__(self, home: Home):
        self._home = home
        self.model = gr.Dropdown(list(home.models()), label="Model")
        self.prompt = gr.Textbox(
            "digit seven", label="Prompt", lines=2, info="<hypernet:name:0.7> calls a network by its name."
        )
        with gr.Row():
            self.draw = gr.Button("Draw", variant="primary", elem_id="draw")
            self.stop = gr.Button("Stop", elem_id="stop")
        self.said = gr.HTML(elem_classes="sentence", elem_id="try-said")
        with gr.Accordion("Settings", open=False):
            negative = gr.Textbox("", label="Negative prompt", info="What not to draw.")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, info="The same seed, the same noise.")
            steps = gr.Slider(STEPS[0], 100, value=20, step=1, label="Steps")
            guidance = gr.Slider(1, 20, value=3.0, step=0.5, label="Guidance", info="1 is none.")
            batch = gr.Slider(BATCH[0], BATCH[1], value=1, step=1, label="Pictures")
            width = gr.Number(0, label="Width", precision=0, minimum=0, info="In pixels; 0 is the model's own.")
            height = gr.Number(0, label="Height", precision=0, minimum=0, info="In pixels; 0 is the model's own.")
        self.fields: list[Any] = [self.model, self.prompt, negative, seed, steps, guidance, batch, width, height]

    def request(self, values: Sequence[Any], uses: Sequence[NetworkUse]) -> DrawRequest:
        """What is to be drawn, not checked yet.

        Args:
            values: of ``fields``.
            uses: the networks in the picture.

        Raises:
            ValueError: the model is not there any more.
        """
        model, prompt, negative, seed, steps, guidance, batch, width, height = values
        return DrawRequest(
            self._home.model(model), prompt or "", negative or "", tuple(uses), seed or 0, int(steps), guidance,
            int(batch), width or None, height or None, model_name=model,
        )  # fmt: skip

    def filled(self, found: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
        """Updates of ``fields`` to the settings of a picture, and what of these is not here.

        Args:
            found: settings by the names of ``DrawRequest``.
        """
        model, models = found.get("model"), list(self._home.models())
        known = model in models
        plain = (found.get(name, gr.skip()) for name in ("prompt", "negative", "seed", "steps", "guidance"))
        sides = (found.get(name) or 0 for name in ("width", "height"))
        left_out = [] if known or model is None else [f"the model {model}"]
        return [gr.Dropdown(models, value=model) if known else gr.skip(), *plain, 1, *sides], left_out
