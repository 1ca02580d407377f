"""The tab Grid: pictures that differ in one thing or two."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from hnkernels.drawing.grid import Axis, Grid, numbers
from hnkernels.drawing.request import DrawRequest
from hnkernels.drawing.stages import Stage, stages_of
from hnkernels.errors import InputError
from hnkernels.home.folder import Home
from hnkernels.home.runs.runs import Runs
from hnkernels.ui.events import PRIVATE
from hnkernels.ui.trying.drawings import Drawings
from hnkernels.ui.trying.jobs import Job, sheet
from hnkernels.ui.trying.networks import NONE, NetworksTab, with_network
from hnkernels.ui.trying.shown import single

_STRENGTH, _SEED, _TRAINING = "strength", "seed", "step of training"
_VALUES = {NONE: "", _STRENGTH: "0, 0.5, 1", _SEED: "1-4", _TRAINING: ""}
_STAGES = 6  # of a run, if nobody says which


class GridTab:
    """What columns and rows differ in, and the grid.

    Attributes:
        varied: chooses the network whose strength differs.
        run: chooses the run whose steps differ.
        drawn: the event of a grid.
    """

    def __init__(self, home: Home, networks: NetworksTab, drawings: Drawings):
        self._runs, self._networks, self._folder = Runs(home), networks, home.pictures
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                columns = gr.Radio(
                    [_STRENGTH, _SEED, _TRAINING], value=_SEED, label="Columns differ in", elem_id="columns"
                )
                across = gr.Textbox(_VALUES[_SEED], label="Values of the columns", info="0, 0.5, 1 or 1-4.")
            with gr.Column(min_width=280):
                rows = gr.Radio([NONE, _STRENGTH, _SEED, _TRAINING], value=NONE, label="Rows differ in", elem_id="rows")
                down = gr.Textbox("", label="Values of the rows", info="For steps of training: empty for some.")
            with gr.Column(min_width=280):
                self.varied = gr.Dropdown([NONE], value=NONE, label="Network whose strength differs")
                self.run = gr.Dropdown([NONE], value=NONE, label="Run whose steps differ")
        draw = gr.Button("Draw the grid", variant="primary", size="sm", elem_id="draw-grid")
        picture = gr.Image(label="Grid", format="png", interactive=False, elem_id="sheet", height=480, visible=False)
        for what, values in ((columns, across), (rows, down)):
            what.input(lambda what: _VALUES[what], inputs=what, outputs=values, **PRIVATE)
        inputs = [columns, across, rows, down, self.varied, self.run]
        self.drawn = drawings.on(draw.click, self._grid, inputs, picture, single)

    def _grid(
        self, request: Callable[[], DrawRequest], columns: str, across: str, rows: str, down: str, varied: str, run: str
    ) -> Job:
        if columns == rows:
            raise InputError(f"columns and rows both differ in {columns}; let them differ in two things, or in one")
        asks = request()
        axes = []
        for what, values in ((columns, across), (rows, down)):
            if what == _STRENGTH:
                asks = with_network(asks, varied, self._networks.known())
                axes.append(Axis.strengths(varied, numbers(values)))
            elif what == _SEED:
                axes.append(Axis.seeds(numbers(values, whole=True)))
            elif what == _TRAINING:
                axes.append(Axis.training(*self._stages(run, values, asks)))
        return sheet(Grid(asks, axes[0], axes[1] if len(axes) > 1 else None), self._folder)

    def _stages(self, run: str, values: str, asks: DrawRequest) -> tuple[str, list[Stage]]:
        """The name of the network that a run trains in this picture, and the steps of its training that are asked for.

        Raises:
            ValueError: the run is not there, or has not kept one of the steps.
        """
        if run in (None, NONE):
            raise InputError("no run is chosen whose steps could differ; choose one that has saved checkpoints")
        folder = self._runs[run].folder
        stages = stages_of(folder)
        name = next((use.name for use in asks.networks if folder in use.file.parents), run)
        if not values.strip():
            chosen = sorted({round(n * (len(stages) - 1) / (_STAGES - 1)) for n in range(_STAGES)})
            return name, [stages[n] for n in chosen] if stages else []
        by_step = {stage.step: stage for stage in stages}
        asked = numbers(values, whole=True)
        if missing := [step for step in asked if step not in by_step]:
            there = ", ".join(str(step) for step in by_step)
            raise InputError(f"{run} has kept no network of step {missing[0]}; there are: {there or 'none'}")
        return name, [by_step[step] for step in asked]
