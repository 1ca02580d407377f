"""Try: pictures with any networks, grids, mixtures of styles, before and after."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from hnkernels.adapter import AdapterError
from hnkernels.checkpoint import CheckpointError
from hnkernels.drawing.artist import Artist, Progress, Stopped
from hnkernels.drawing.background import Drawing
from hnkernels.drawing.grid import Axis, Grid, numbers
from hnkernels.drawing.png import save_picture, settings_in, texts
from hnkernels.drawing.request import BATCH, STEPS, DrawRequest, NetworkUse
from hnkernels.drawing.stages import Stage, stages_of
from hnkernels.home.folder import Home
from hnkernels.home.library.entry import Entry
from hnkernels.home.library.facts import WEIGHTS
from hnkernels.home.library.library import Library
from hnkernels.home.names import child
from hnkernels.home.runs.runs import Runs
from hnkernels.ui import offered
from hnkernels.ui.events import PRIVATE, refused, sentence

FAULTS = (ValueError, OSError, CheckpointError, AdapterError)

_ROWS = 3  # networks at a time
_STYLES = 16  # sliders
_PARTS = {
    "down": "going down",
    "mid": "in the middle",
    "up": "going up",
    "attn1": "self-attention",
    "attn2": "cross-attention",
    "k": "K",
    "v": "V",
}
_NONE = "none"
_STRENGTH, _SEED, _TRAINING = "strength", "seed", "step of training"
_VALUES = {_NONE: "", _STRENGTH: "0, 0.5, 1", _SEED: "1-4", _TRAINING: ""}
_EARLIER = 24
_SHOWN = 256  # pixels that a shown picture has at least
_STAGES = 6  # of a run, if nobody says which
_WAITS = "Waits: another picture is being drawn."


class _Told(NamedTuple):
    """How far a drawing has come: in words, and pictures if there are new ones."""

    words: str
    pictures: list[Image.Image] | None = None


def build(home: Home) -> None:
    """The page."""
    _Page(home)


class _Page:
    """The page's components and what they do."""

    def __init__(self, home: Home):
        self.home, self.runs, self.library, self.artist = home, Runs(home), Library(home), Artist()
        self.drawings: dict[str, Drawing] = {}
        gr.Markdown("# Try\nSay what to draw, choose networks if there are any, and press Draw.")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self._words()
            with gr.Column(scale=3, min_width=320):
                self.gallery = gr.Gallery(
                    label="Pictures", columns=4, height=420, object_fit="contain", format="png", interactive=False,
                    preview=True, buttons=["download", "fullscreen"], elem_id="pictures",
                )  # fmt: skip
        with gr.Tabs():
            with gr.Tab("Networks"):
                self._networks()
            with gr.Tab("Grid"):
                self._grid()
            with gr.Tab("Styles"):
                self._styles()
            with gr.Tab("Before and after"):
                self._slider()
            with gr.Tab("From a picture"):
                self._pictures()
        self._connect()

    def _words(self) -> None:
        self.model = gr.Dropdown(list(self.home.models()), label="Model")
        self.prompt = gr.Textbox(
            "digit seven", label="Prompt", lines=2, info="<hypernet:name:0.7> calls a network by its name."
        )
        with gr.Row():
            self.draw = gr.Button("Draw", variant="primary", elem_id="draw")
            self.stop = gr.Button("Stop", elem_id="stop")
        self.said = gr.HTML(elem_classes="sentence", elem_id="try-said")
        with gr.Accordion("Settings", open=False):
            self.negative = gr.Textbox("", label="Negative prompt", info="What not to draw.")
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, info="The same seed, the same noise.")
            self.steps = gr.Slider(STEPS[0], 100, value=20, step=1, label="Steps")
            self.guidance = gr.Slider(1, 20, value=3.0, step=0.5, label="Guidance", info="1 is none.")
            self.batch = gr.Slider(BATCH[0], BATCH[1], value=1, step=1, label="Pictures")
            self.width = gr.Number(0, label="Width", precision=0, minimum=0, info="In pixels; 0 is the model's own.")
            self.height = gr.Number(0, label="Height", precision=0, minimum=0, info="In pixels; 0 is the model's own.")

    def _networks(self) -> None:
        self.rows: list[gr.components.Component] = []
        with gr.Row(equal_height=False):
            for number in range(1, _ROWS + 1):
                with gr.Column(min_width=280), gr.Group():
                    name = gr.Dropdown([_NONE], value=_NONE, label=f"Network {number}", elem_id=f"network-{number}")
                    strength = gr.Slider(0, 2, value=1, step=0.05, label=f"Strength of network {number}")
                    with gr.Accordion(f"Parts of network {number}", open=False):
                        parts = [
                            gr.Slider(0, 2, value=1, step=0.05, label=f"{number}: times, {where}")
                            for where in _PARTS.values()
                        ]
                self.rows += [name, strength, *parts]

    def _grid(self) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                self.columns = gr.Radio(
                    [_STRENGTH, _SEED, _TRAINING], value=_SEED, label="Columns differ in", elem_id="columns"
                )
                self.across = gr.Textbox(_VALUES[_SEED], label="Values of the columns", info="0, 0.5, 1 or 1-4.")
            with gr.Column(min_width=280):
                self.downwards = gr.Radio(
                    [_NONE, _STRENGTH, _SEED, _TRAINING], value=_NONE, label="Rows differ in", elem_id="rows"
                )
                self.down = gr.Textbox("", label="Values of the rows", info="For steps of training: empty for some.")
            with gr.Column(min_width=280):
                self.varied = gr.Dropdown([_NONE], value=_NONE, label="Network whose strength differs")
                self.run = gr.Dropdown([_NONE], value=_NONE, label="Run whose steps differ")
        self.draw_grid = gr.Button("Draw the grid", variant="primary", size="sm", elem_id="draw-grid")
        self.sheet = gr.Image(label="Grid", format="png", interactive=False, elem_id="sheet", height=480, visible=False)

    def _styles(self) -> None:
        self.styled = gr.Dropdown([_NONE], value=_NONE, label="Weight hypernetwork", elem_id="styled")
        self.known = gr.HTML(elem_classes="sentence", elem_id="styles-said")
        with gr.Row(equal_height=False):
            self.styles = [
                gr.Slider(0, 1, value=0, step=0.05, label=f"Style {n + 1}", visible=False, min_width=220)
                for n in range(_STYLES)
            ]
        self.draw_mixture = gr.Button("Draw this mixture", variant="primary", size="sm", elem_id="draw-mixture")
        with gr.Row(equal_height=False):
            self.first = gr.Dropdown([_NONE], value=_NONE, label="From style", min_width=180)
            self.second = gr.Dropdown([_NONE], value=_NONE, label="To style", min_width=180)
            self.count = gr.Slider(2, 12, value=5, step=1, label="Pictures of the strip", min_width=180)
        self.draw_strip = gr.Button("Draw the strip", size="sm", elem_id="draw-strip")
        self.strip = gr.Image(
            label="Strip", format="png", interactive=False, elem_id="strip", height=280, visible=False
        )

    def _slider(self) -> None:
        gr.Markdown("The same seed without the networks, and with them as they are chosen above.")
        self.compare = gr.Button("Draw before and after", variant="primary", size="sm", elem_id="compare")
        self.both = gr.ImageSlider(
            label="Before on the left, after on the right",
            format="png",
            interactive=False,
            elem_id="both",
            max_height=420,
            visible=False,
        )

        self.place = gr.Slider(0, 100, value=50, step=1, label="Where before ends", elem_id="place", visible=False)

    def _pictures(self) -> None:
        gr.Markdown("A PNG that was drawn here, or by A1111, brings its settings along.")
        self.png = gr.File(label="PNG with settings", file_types=[".png"], elem_id="png")
        self.earlier = gr.Gallery(
            label="Earlier pictures: choose one for its settings", columns=6, height=260, allow_preview=False,
            interactive=False, object_fit="contain", buttons=[], elem_id="earlier",
        )  # fmt: skip
        self.names = gr.State([])

    def _connect(self) -> None:
        self.asked: list[Any] = [
            self.model,
            self.prompt,
            self.negative,
            self.seed,
            self.steps,
            self.guidance,
            self.batch,
        ]
        self.asked += [self.width, self.height, *self.rows]
        page: Any = gr.context.Context.root_block
        drawing: dict[str, Any] = {**PRIVATE, "concurrency_limit": None, "show_progress": "hidden"}
        earlier: dict[str, Any] = {"outputs": [self.earlier, self.names], **PRIVATE, "show_progress": "hidden"}
        lists = [self.model, *self.rows[:: 2 + len(_PARTS)], self.varied, self.run, self.styled]
        page.load(self._opened, inputs=lists, outputs=[*lists, self.said], **PRIVATE).then(
            self._knows, inputs=self.styled, outputs=[self.known, self.first, self.second, *self.styles], **PRIVATE
        ).then(self._earlier, **earlier)
        gr.on(
            [self.draw.click, self.prompt.submit],
            self._draw,
            inputs=self.asked,
            outputs=[self.gallery, self.said],
            **drawing,
        ).then(self._earlier, **earlier)
        self.stop.click(self._stop, outputs=self.said, **PRIVATE)
        for what, values in ((self.columns, self.across), (self.downwards, self.down)):
            what.input(lambda what: _VALUES[what], inputs=what, outputs=values, **PRIVATE)
        grid = [self.columns, self.across, self.downwards, self.down, self.varied, self.run]
        self.draw_grid.click(
            self._draw_grid, inputs=[*grid, *self.asked], outputs=[self.sheet, self.said], **drawing
        ).then(self._earlier, **earlier)
        self.styled.input(
            self._knows, inputs=self.styled, outputs=[self.known, self.first, self.second, *self.styles], **PRIVATE
        )
        self.draw_mixture.click(
            self._draw_mixture,
            inputs=[self.styled, *self.styles, *self.asked],
            outputs=[self.gallery, self.said],
            **drawing,
        ).then(self._earlier, **earlier)
        self.draw_strip.click(
            self._draw_strip,
            inputs=[self.styled, self.first, self.second, self.count, *self.asked],
            outputs=[self.strip, self.said],
            **drawing,
        ).then(self._earlier, **earlier)
        self.compare.click(self._compare, inputs=self.asked, outputs=[self.both, self.said], **drawing).then(
            lambda both: gr.Slider(visible=both is not None), inputs=self.both, outputs=self.place, **drawing
        )
        self.place.input(
            lambda place: gr.ImageSlider(slider_position=place),
            inputs=self.place,
            outputs=self.both,
            trigger_mode="always_last",
            **drawing,
        )
        self.png.upload(self._from_file, inputs=self.png, outputs=[*self.asked, self.said], **PRIVATE)
        self.earlier.select(self._from_earlier, inputs=self.names, outputs=[*self.asked, self.said], **PRIVATE)

    def _opened(self, request: gr.Request, model: str, *chosen: str) -> list[Any]:
        """The lists as they are now, when the page is opened or reloaded; a network of the address is chosen."""
        networks, models = list(offered.networks(self.library)), list(self.home.models())
        asked = [name for name in request.query_params.getlist("network") if name in networks][:_ROWS]
        rows = [*asked, *[_NONE] * (_ROWS - len(asked))]
        runs = [run.name for run in self.runs.all() if stages_of(run.folder)]
        styled = list(offered.networks(self.library, (WEIGHTS,)))
        busy = any(drawing.running for drawing in self.drawings.values())
        said = "A picture is being drawn still, for another tab, or for this page before it was reloaded. " * busy
        return [
            gr.Dropdown(models, value=models[0]),
            *(gr.Dropdown([_NONE, *networks], value=name) for name in rows),
            gr.Dropdown([_NONE, *networks], value=asked[0] if asked else _NONE),
            gr.Dropdown([_NONE, *runs], value=runs[0] if runs else _NONE),
            gr.Dropdown([_NONE, *styled], value=styled[0] if styled else _NONE),
            said + "Stop ends it; what is done is among the earlier pictures." * busy,
        ]

    def _request(self, values: Sequence[Any]) -> DrawRequest:
        """What the page asks for.

        Raises:
            ValueError: it cannot be drawn.
        """
        model, prompt, negative, seed, steps, guidance, batch, width, height, *rows = values
        known, uses = offered.networks(self.library), []
        for start in range(0, len(rows), 2 + len(_PARTS)):
            name, strength, *factors = rows[start : start + 2 + len(_PARTS)]
            if name in (None, _NONE):
                continue
            parts = {part: factor for part, factor in zip(_PARTS, factors, strict=True) if factor != 1}
            uses.append(NetworkUse(_entry(known, name).file(), name, strength, parts))
        if twice := [use.name for n, use in enumerate(uses) if use.name in [other.name for other in uses[:n]]]:
            raise ValueError(f"{twice[0]} is chosen twice; choose another network, or none, in one of the places")
        request = DrawRequest(
            self.home.model(model), prompt or "", negative or "", tuple(uses), seed or 0, int(steps), guidance,
            int(batch), width or None, height or None, model_name=model,
        )  # fmt: skip
        request = request.called(
            {name: entry.file() for name, entry in known.items()}, f"there are: {', '.join(known) or 'none'}"
        )
        request.check()
        return request

    def _draw(self, request: gr.Request, *values: Any) -> Iterator[tuple[Any, str]]:
        yield from self._shown(request, lambda: self._batch(self._request(values)), _gallery)

    def _draw_mixture(self, request: gr.Request, name: str, *values: Any) -> Iterator[tuple[Any, str]]:
        weights, asked = values[:_STYLES], values[_STYLES:]

        def work() -> Any:
            entry = _entry(offered.networks(self.library), name)
            styles = {style: weight for style, weight in zip(entry.facts.styles, weights, strict=False) if weight}
            if not styles:
                raise ValueError("all weights are 0; give one style at least a weight")
            return self._batch(_with_styles(self._request(asked), entry.file(), name, styles))

        yield from self._shown(request, work, _gallery)

    def _draw_strip(
        self, request: gr.Request, name: str, first: str, second: str, count: float, *asked: Any
    ) -> Iterator[tuple[Any, str]]:
        def work() -> Any:
            file = _entry(offered.networks(self.library), name).file()
            if _NONE in (first, second):
                raise ValueError("choose two styles, one for each end of the strip")
            asks = _with_styles(self._request(asked), file, name, {first: 1.0})
            return self._sheet(Grid(asks, Axis.mixtures(name, first, second, int(count))))

        yield from self._shown(request, work, _picture)

    def _draw_grid(
        self, request: gr.Request, columns: str, across: str, rows: str, down: str, varied: str, run: str, *asked: Any
    ) -> Iterator[tuple[Any, str]]:
        def work() -> Any:
            if columns == rows:
                raise ValueError(f"columns and rows both differ in {columns}; let them differ in two things, or in one")
            asks = self._request(asked)
            axes = []
            for what, values in ((columns, across), (rows, down)):
                if what == _STRENGTH:
                    asks = self._with(asks, varied)
                    axes.append(Axis.strengths(varied, numbers(values)))
                elif what == _SEED:
                    axes.append(Axis.seeds(numbers(values, whole=True)))
                elif what == _TRAINING:
                    axes.append(Axis.training(*self._stages(run, values, asks)))
            return self._sheet(Grid(asks, axes[0], axes[1] if len(axes) > 1 else None))

        yield from self._shown(request, work, _picture)

    def _compare(self, request: gr.Request, *values: Any) -> Iterator[tuple[Any, str]]:
        def work() -> Any:
            after = self._request(values)
            if not after.networks:
                raise ValueError("no network is chosen; choose one under Networks, or call one in the prompt")
            after = replace(after, batch=1, prompt=after.text)
            before = replace(after, networks=tuple(replace(use, strength=0.0) for use in after.networks))

            def draw(stop: Event, tell: Callable[[_Told], None]) -> tuple[list[Image.Image], str]:
                with self.artist.turn(stop, lambda: tell(_Told(_WAITS))):
                    both = []
                    for words, asks in (("Before", before), ("After", after)):
                        both += self.artist.draw(asks, stop, _telling(tell, f"{words}: "))
                return both, sentence(f"Drawn with seed {after.seed}, before and after.")

            return draw

        yield from self._shown(
            request, work, lambda both: gr.ImageSlider((_large(both[0]), _large(both[1])), visible=True)
        )

    def _batch(self, asks: DrawRequest) -> Callable[..., tuple[list[Image.Image], str]]:
        """What draws a request and saves its pictures."""

        def draw(stop: Event, tell: Callable[[_Told], None]) -> tuple[list[Image.Image], str]:
            began = time.monotonic()
            with self.artist.turn(stop, lambda: tell(_Told(_WAITS))):
                tell(_Told("Reads the model and the networks."))
                pictures = self.artist.draw(asks, stop, _telling(tell))
            how = f"Drawn in {time.monotonic() - began:.1f} s"
            ones = [replace(asks, seed=seed, batch=1) for seed in asks.seeds()]
            for one, picture in zip(ones, pictures, strict=True):
                picture.info.update(texts(one, picture.size))
            return pictures, self._saved(how, [(picture, one) for one, picture in zip(ones, pictures, strict=True)])

        return draw

    def _saved(self, how: str, pictures: Sequence[tuple[Any, ...]]) -> str:
        """Saves what was drawn, and says so; pictures that cannot be saved are shown all the same.

        Args:
            how: what became of the drawing.
            pictures: arguments of ``save_picture`` but for the folder: the picture, then what goes with it.
        """
        try:
            names = [save_picture(picture, self.home.pictures, *more).name for picture, *more in pictures]
        except ValueError as error:
            return refused(error)
        return sentence(f"{how}, saved as {', '.join(names)}.")

    def _sheet(self, grid: Grid) -> Callable[..., tuple[list[Image.Image], str]]:
        """What draws a grid and saves its sheet."""

        def draw(stop: Event, tell: Callable[[_Told], None]) -> tuple[list[Image.Image], str]:
            tell(_Told("Reads the model and the networks."))

            def progress(done: int, one: Progress) -> None:
                new = [grid.sheet()] if done and one.step == 1 else None
                tell(_Told(f"Picture {done + 1} of {grid.cells}, step {one.step} of {one.steps}.", new))

            grid.draw(self.artist, stop, progress, lambda: tell(_Told(_WAITS)))
            if not grid.pictures:
                raise Stopped
            sheet, size = grid.sheet(), next(iter(grid.pictures.values())).size
            sheet.info.update(texts(grid.request, size, grid.to_json()))
            tell(_Told("Saves the grid.", [sheet]))
            how = f"Stopped after {len(grid.pictures)} of {grid.cells} pictures" if grid.stopped else "Drawn"
            return [sheet], self._saved(how, [(sheet, grid.request, grid.to_json(), size)])

        return draw

    def _shown(
        self, request: gr.Request, work: Callable[[], Any], shown: Callable[[list[Image.Image]], Any]
    ) -> Iterator[tuple[Any, str]]:
        """Begins a drawing, and shows what becomes of it; it goes on when nobody looks."""
        session = request.session_hash or ""
        try:
            if (own := self.drawings.get(session)) is not None and own.running:
                raise ValueError("this page is drawing already; wait, or press Stop first")
            self.drawings = {key: drawing for key, drawing in self.drawings.items() if drawing.running}
            drawing = self.drawings[session] = Drawing(work())
        except FAULTS as error:
            yield gr.skip(), refused(error)
            return
        for told in drawing.follow():
            words = "Stops after this step." if drawing.stopping else told.words
            yield gr.skip() if told.pictures is None else shown(told.pictures), words
        try:
            pictures, words = drawing.result()
        except Stopped:
            yield gr.skip(), "Stopped."
        except FAULTS as error:
            yield gr.skip(), refused(error)
        except Exception as error:  # whatever the code of a model raises
            logging.getLogger(__name__).exception("a picture could not be drawn")
            yield gr.skip(), refused(ValueError(f"the model could not draw this: {error}"))
        else:
            yield shown(pictures), words

    def _stop(self, request: gr.Request) -> str:
        running = {session: drawing for session, drawing in self.drawings.items() if drawing.running}
        if not running:
            return "Nothing is being drawn."
        own = running.get(request.session_hash or "")
        for drawing in [own] if own is not None else running.values():
            drawing.stop()
        return "Stops after this step." if own else "Stops what another tab, or this page before, has begun."

    def _with(self, asks: DrawRequest, name: str) -> DrawRequest:
        """The request with a network in it, however it was chosen."""
        if name in (use.name for use in asks.networks):
            return asks
        use = NetworkUse(_entry(offered.networks(self.library), name).file(), name)
        return replace(asks, networks=(*asks.networks, use))

    def _stages(self, run: str, values: str, asks: DrawRequest) -> tuple[str, list[Stage]]:
        """The name of the network that a run trains in this picture, and the steps of its training that are asked for.

        Raises:
            ValueError: the run is not there, or has not kept one of the steps.
        """
        if run in (None, _NONE):
            raise ValueError("no run is chosen whose steps could differ; choose one that has saved checkpoints")
        folder = self.runs[run].folder
        stages = stages_of(folder)
        name = next((use.name for use in asks.networks if folder in use.file.parents), run)
        if not values.strip():
            chosen = sorted({round(n * (len(stages) - 1) / (_STAGES - 1)) for n in range(_STAGES)})
            return name, [stages[n] for n in chosen] if stages else []
        by_step = {stage.step: stage for stage in stages}
        asked = numbers(values, whole=True)
        if missing := [step for step in asked if step not in by_step]:
            there = ", ".join(str(step) for step in by_step)
            raise ValueError(f"{run} has kept no network of step {missing[0]}; there are: {there or 'none'}")
        return name, [by_step[step] for step in asked]

    def _knows(self, name: str) -> list[Any]:
        """The styles of a weight hypernetwork, as sliders and lists."""
        try:
            styles = () if name in (None, _NONE) else _entry(offered.networks(self.library), name).facts.styles
            said = f"It has {len(styles)} styles." if styles else "It has no styles; the prompt is its condition."
            if name in (None, _NONE):
                said = "There is no weight hypernetwork chosen. Train one, of the kind weight, on pictures with styles."
            elif len(styles) > _STYLES:
                said = f"It has {len(styles)} styles; the first {_STYLES} have sliders."
        except FAULTS as error:
            styles, said = (), refused(error)
        ends = [styles[0], styles[-1]] if styles else [_NONE, _NONE]
        sliders = [
            gr.Slider(label=styles[n], value=float(n == 0), visible=True)
            if n < len(styles)
            else gr.Slider(visible=False)
            for n in range(_STYLES)
        ]
        return [said, *(gr.Dropdown([_NONE, *styles], value=end) for end in ends), *sliders]

    def _earlier(self) -> tuple[Any, list[str]]:
        """The pictures that were drawn last."""
        try:
            files = sorted(self.home.pictures.glob("[!.]*.png"), key=lambda file: file.stat().st_mtime, reverse=True)
        except OSError:
            files = []
        shown, names = [], []
        for file in files[:_EARLIER]:
            try:
                with Image.open(child(self.home.pictures, file.name), formats=["PNG"]) as image:
                    image.thumbnail((_SHOWN, _SHOWN))
                    shown.append(_large(image.convert("RGB")))
                    names.append(file.name)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                continue
        return shown, names

    def _from_earlier(self, names: list[str], event: gr.SelectData) -> list[Any]:
        try:
            return self._filled(child(self.home.pictures, names[int(event.index)]))
        except (*FAULTS, IndexError) as error:
            return [*[gr.skip()] * len(self.asked), refused(error)]

    def _from_file(self, file: str | None) -> list[Any]:
        try:
            if not file:
                raise ValueError("no file was sent; choose a PNG")
            return self._filled(Path(file))
        except FAULTS as error:
            return [*[gr.skip()] * len(self.asked), refused(error)]

    def _filled(self, file: Path) -> list[Any]:
        """The page with the settings of a picture."""
        found = settings_in(file)
        models, known = list(self.home.models()), list(offered.networks(self.library))
        left_out = []
        model = found.get("model")
        if model is not None and model not in models:
            left_out.append(f"the model {model}")
        plain = ("prompt", "negative", "seed", "steps", "guidance")
        values: list[Any] = [gr.Dropdown(models, value=model) if model in models else gr.skip()]
        values += [found.get(name, gr.skip()) for name in plain]
        values += [1, found.get("width") or 0, found.get("height") or 0]
        networks = [one for one in found.get("networks", []) if one["name"] in known][:_ROWS]
        left_out += [one["name"] for one in found.get("networks", []) if one not in networks]
        for number in range(_ROWS):
            one: dict[str, Any] = {"name": _NONE, "strength": 1.0, "parts": {}}
            one = networks[number] if number < len(networks) else one
            values += [gr.Dropdown([_NONE, *known], value=one["name"]), one["strength"]]
            values += [one["parts"].get(part, 1.0) for part in _PARTS]
        left = f" Not here, and left out: {', '.join(left_out)}." if left_out else ""
        return [*values, sentence(f"Took the settings of {file.name}.{left}")]


def _with_styles(asks: DrawRequest, file: Path, name: str, styles: dict[str, float]) -> DrawRequest:
    """The request with a weight hypernetwork under a mixture of styles."""
    if name in (use.name for use in asks.networks):
        return asks.with_network(name, styles=styles)
    return replace(asks, networks=(*asks.networks, NetworkUse(file, name, styles=styles)))


def _entry(known: dict[str, Entry], name: str | None) -> Entry:
    if name is None or name == _NONE:
        raise ValueError("no network is chosen; choose one")
    if name not in known:
        raise ValueError(f"there is no network {name!r} any more; choose another, or reload the page for the list")
    return known[name]


def _telling(tell: Callable[[_Told], None], before: str = "") -> Callable[[Progress], None]:
    """Tells of steps, with a preview when that costs little beside the steps."""
    seen, cost = time.monotonic(), 0.0

    def progress(one: Progress) -> None:
        nonlocal seen, cost
        pictures, now = None, time.monotonic()
        if one.step < one.steps and now - seen > max(1.0, 20 * cost) and not before:
            pictures = one.preview() or None
            seen, cost = time.monotonic(), time.monotonic() - now
        tell(_Told(f"{before}step {one.step} of {one.steps}.".capitalize(), pictures))

    return progress


def _large(picture: Image.Image) -> Image.Image:
    """A picture that is not blurred when a browser enlarges it, with its texts."""
    zoom = max(1, _SHOWN // max(picture.size))
    if zoom == 1:
        return picture
    large = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    large.info = dict(picture.info)
    return large


def _gallery(pictures: list[Image.Image]) -> Any:
    return gr.Gallery([_large(picture) for picture in pictures], selected_index=0)


def _picture(pictures: list[Image.Image]) -> Any:
    return gr.Image(pictures[0], visible=True)
