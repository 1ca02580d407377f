"""The tab Styles: mixtures of the styles of a weight hypernetwork, and the way from one style to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from hnkernels.drawing.grid import Axis, Grid
from hnkernels.drawing.request import DrawRequest
from hnkernels.errors import InputError
from hnkernels.home.folder import Home
from hnkernels.ui.events import FAULTS, PRIVATE, refused
from hnkernels.ui.trying.drawings import Drawings
from hnkernels.ui.trying.jobs import Job, batch, sheet
from hnkernels.ui.trying.networks import NONE, NetworksTab, chosen, with_network
from hnkernels.ui.trying.shown import gallery, single

_SLIDERS = 16


class StylesTab:
    """A slider per style, and two styles for the ends of a strip.

    Args:
        home: where pictures are saved.
        networks: the networks that can be chosen.
        drawings: draws.
        pictures: the gallery that shows a mixture.

    Attributes:
        styled: chooses the weight hypernetwork.
        knows: the event that shows its styles.
        drawn: the events of a mixture and of a strip.
    """

    def __init__(self, home: Home, networks: NetworksTab, drawings: Drawings, pictures: gr.Gallery):
        self._networks, self._folder = networks, home.pictures
        self.styled = gr.Dropdown([NONE], value=NONE, label="Weight hypernetwork", elem_id="styled")
        said = gr.HTML(elem_classes="sentence", elem_id="styles-said")
        with gr.Row(equal_height=False):
            sliders: list[Any] = [
                gr.Slider(0, 1, value=0, step=0.05, label=f"Style {n + 1}", visible=False, min_width=220)
                for n in range(_SLIDERS)
            ]
        draw_mixture = gr.Button("Draw this mixture", variant="primary", size="sm", elem_id="draw-mixture")
        with gr.Row(equal_height=False):
            first = gr.Dropdown([NONE], value=NONE, label="From style", min_width=180)
            second = gr.Dropdown([NONE], value=NONE, label="To style", min_width=180)
            count = gr.Slider(2, 12, value=5, step=1, label="Pictures of the strip", min_width=180)
        draw_strip = gr.Button("Draw the strip", size="sm", elem_id="draw-strip")
        strip = gr.Image(label="Strip", format="png", interactive=False, elem_id="strip", height=280, visible=False)
        self.knows: dict[str, Any] = {
            "fn": self._knows, "inputs": self.styled, "outputs": [said, first, second, *sliders], **PRIVATE
        }  # fmt: skip
        self.styled.input(**self.knows)
        self.drawn = (
            drawings.on(draw_mixture.click, self._mixture, [self.styled, *sliders], pictures, gallery),
            drawings.on(draw_strip.click, self._strip, [self.styled, first, second, count], strip, single),
        )

    def _mixture(self, request: Callable[[], DrawRequest], name: str, *weights: float) -> Job:
        known = self._networks.known()
        names = chosen(known, name).facts.styles
        styles = {style: weight for style, weight in zip(names, weights, strict=False) if weight}
        if not styles:
            raise InputError("all weights are 0; give one style at least a weight")
        return batch(with_network(request(), name, known, styles=styles), self._folder)

    def _strip(self, request: Callable[[], DrawRequest], name: str, first: str, second: str, count: float) -> Job:
        known = self._networks.known()
        chosen(known, name)
        if NONE in (first, second):
            raise InputError("choose two styles, one for each end of the strip")
        asks = with_network(request(), name, known, styles={first: 1.0})
        return sheet(Grid(asks, Axis.mixtures(name, first, second, int(count))), self._folder)

    def _knows(self, name: str | None) -> list[Any]:
        """The styles of a weight hypernetwork, as sliders and lists."""
        styles: tuple[str, ...] = ()
        try:
            if name in (None, NONE):
                said = "There is no weight hypernetwork chosen. Train one, of the kind weight, on pictures with styles."
            else:
                styles = chosen(self._networks.known(), name).facts.styles
                said = f"It has {len(styles)} styles." if styles else "It has no styles; the prompt is its condition."
                if len(styles) > _SLIDERS:
                    said = f"It has {len(styles)} styles; the first {_SLIDERS} have sliders."
        except FAULTS as error:
            said = refused(error)
        ends = [styles[0], styles[-1]] if styles else [NONE, NONE]
        sliders = [
            gr.Slider(label=styles[n], value=float(n == 0), visible=True)
            if n < len(styles)
            else gr.Slider(visible=False)
            for n in range(_SLIDERS)
        ]
        return [said, *(gr.Dropdown([NONE, *styles], value=end) for end in ends), *sliders]
