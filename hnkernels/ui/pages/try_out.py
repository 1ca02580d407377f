"""Try: pictures with any networks, grids, mixtures of styles, before and after."""

from __future__ import annotations

from typing import Any

import gradio as gr

from hnkernels.drawing.stages import stages_of
from hnkernels.home.folder import Home
from hnkernels.home.library.facts import WEIGHTS
from hnkernels.home.library.library import Library
from hnkernels.home.runs.runs import Runs
from hnkernels.ui import offered
from hnkernels.ui.events import PRIVATE
from hnkernels.ui.trying.asked import Asked
from hnkernels.ui.trying.before_after import BeforeAfterTab
from hnkernels.ui.trying.drawings import Drawings
from hnkernels.ui.trying.from_picture import FromPictureTab
from hnkernels.ui.trying.grid import GridTab
from hnkernels.ui.trying.jobs import batch
from hnkernels.ui.trying.networks import NONE, PLACES, NetworksTab
from hnkernels.ui.trying.shown import gallery
from hnkernels.ui.trying.styles import StylesTab
from hnkernels.ui.trying.words import Words


def build(home: Home) -> None:
    """The page."""
    _Page(home)


class _Page:
    """The parts of the page, and what happens when it is opened."""

    def __init__(self, home: Home):
        self.home, self.runs, self.library = home, Runs(home), Library(home)
        gr.Markdown("# Try\nSay what to draw, choose networks if there are any, and press Draw.")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                words = Words(home)
            with gr.Column(scale=3, min_width=320):
                pictures = gr.Gallery(
                    label="Pictures", columns=4, height=420, object_fit="contain", format="png", interactive=False,
                    preview=True, buttons=["download", "fullscreen"], elem_id="pictures", visible=False,
                )  # fmt: skip
        with gr.Tabs():
            with gr.Tab("Networks"):
                networks = NetworksTab(self.library)
            asked = Asked(words, networks)
            self.drawings = Drawings(asked, words.said)
            with gr.Tab("Grid"):
                grid = GridTab(home, networks, self.drawings)
            with gr.Tab("Styles"):
                styles = StylesTab(home, networks, self.drawings, pictures)
            with gr.Tab("Before and after"):
                BeforeAfterTab(self.drawings)
            with gr.Tab("From a picture"):
                from_picture = FromPictureTab(home, asked, words.said)

        drawn = self.drawings.on(
            [words.draw.click, words.prompt.submit],
            lambda request: batch(request(), home.pictures),
            [],
            pictures,
            gallery,
        )
        for event in (drawn, grid.drawn, *styles.drawn):
            event.then(**from_picture.lists)
        words.stop.click(self.drawings.stop, outputs=words.said, **PRIVATE)
        page: Any = gr.context.Context.root_block
        lists = [words.model, *networks.names, grid.varied, grid.run, styles.styled]
        page.load(self._opened, outputs=[*lists, words.said], **PRIVATE).then(**styles.knows).then(**from_picture.lists)

    def _opened(self, request: gr.Request) -> list[Any]:
        """The lists as they are now, when the page is opened or reloaded; a network of the address is chosen."""
        networks, models = list(offered.networks(self.library)), list(self.home.models())
        asked = [name for name in request.query_params.getlist("network") if name in networks][:PLACES]
        rows = [*asked, *[NONE] * (PLACES - len(asked))]
        runs = [run.name for run in self.runs.all() if stages_of(run.folder)]
        styled = list(offered.networks(self.library, (WEIGHTS,)))
        said = (
            "A picture is being drawn still, for another tab, or for this page before it was reloaded. "
            "Stop ends it; what is done is among the earlier pictures."
        )
        return [
            gr.Dropdown(models, value=models[0]),
            *(gr.Dropdown([NONE, *networks], value=name) for name in rows),
            gr.Dropdown([NONE, *networks], value=asked[0] if asked else NONE),
            gr.Dropdown([NONE, *runs], value=runs[0] if runs else NONE),
            gr.Dropdown([NONE, *styled], value=styled[0] if styled else NONE),
            said if self.drawings.busy else "",
        ]
