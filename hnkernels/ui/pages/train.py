"""Train: a model, pictures and settings, looked at, checked, and started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from hnkernels.errors import InputError
from hnkernels.home.dataset import Dataset
from hnkernels.home.folder import Home
from hnkernels.home.incoming_data import take_pictures
from hnkernels.home.runs.pace import seconds_per_step
from hnkernels.home.runs.plan import DATA, MODEL, NETWORK, Fault, plan, side_of
from hnkernels.home.runs.request import RunRequest
from hnkernels.home.runs.runs import Runs
from hnkernels.network.activations import ACTIVATIONS
from hnkernels.network.mlp import INITS
from hnkernels.pipeline import MODEL_DTYPES
from hnkernels.study.protocol import Protocol
from hnkernels.training.data.buckets import Buckets
from hnkernels.training.networks import KINDS
from hnkernels.training.recipes import RECIPES
from hnkernels.training.settings import settings
from hnkernels.ui import form
from hnkernels.ui.events import PRIVATE, refused, said, sentence
from hnkernels.ui.pictures import element
from hnkernels.units import duration, size

_PER_PAGE = 24
_MINUTES = "The embedded model, in seconds"
_OWN = "Own settings"


def build(home: Home) -> None:
    """The page."""
    _Page(home)


class _Page:
    """The page's components and what they do."""

    def __init__(self, home: Home):
        self.home, self.runs = home, Runs(home)
        self.read: dict[str, Dataset] = {}
        gr.Markdown("# Train\nChoose a model and pictures, look at the settings, and start.")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self._choices()
            with gr.Column(scale=3, min_width=320):
                self._pictures()
        self._settings()
        self._connect()

    def _choices(self) -> None:
        models, data = list(self.home.models()), list(self.home.datasets())
        self.model = gr.Dropdown(
            models, value=models[0], label="Model", elem_id="model", info="Which base model learns."
        )
        self.data = gr.Dropdown(
            data, value=data[0] if data else None, label="Pictures", elem_id="data", info="Which it learns from."
        )
        self.name = gr.Textbox(
            "my-style", label="Name", elem_id="name", info="By which prompts and files call the network."
        )
        self.recipe = gr.Radio(
            [_MINUTES, *RECIPES, _OWN],
            value=_MINUTES,
            label="Recipe",
            elem_id="recipe",
            info="Fills in the settings below; see docs/recipes.md for why.",
        )
        self.start = gr.Button("Start", variant="primary", elem_id="start")
        self.said = gr.HTML(elem_classes="sentence", elem_id="train-said")
        self.cost = gr.HTML(elem_classes="sentence", elem_id="cost")
        self.measure = gr.Button("Measure how long a step takes", size="sm")
        self.started = gr.Textbox(visible=False)
        self.faulty = gr.State("")  # the field that is marked

    def _pictures(self) -> None:
        self.gallery = gr.Gallery(
            label="Pictures and captions",
            elem_id="pictures",
            columns=6,
            height=330,
            allow_preview=False,
            interactive=False,
            buttons=[],
        )
        self.place = gr.Slider(1, 2, value=1, step=1, label="Part of the pictures", visible=False)
        self.about = gr.HTML(elem_classes="sentence", elem_id="data-said")
        with gr.Row():
            self.crop = gr.HTML("<p>Choose a picture to see what is cropped.</p>", elem_id="crop")
            with gr.Column():
                self.number = gr.Number(0, label="Number of the picture", elem_id="number", minimum=0, precision=0)
                self.caption = gr.Textbox(label="Caption", elem_id="caption", lines=2)
                self.save = gr.Button("Save the caption", size="sm")
        with gr.Accordion("Add pictures of your own", open=False):
            self.new_data = gr.Textbox("my-pictures", label="Name of the new data set", elem_id="new-data")
            self.files = gr.File(
                label="Pictures, and .txt files of the same names with their captions",
                file_count="multiple",
                elem_id="new-files",
            )
            self.add = gr.Button("Add", size="sm")

    def _settings(self) -> None:
        self.fields: dict[str, gr.components.Component] = {}
        folders = list(self.home.datasets())
        network, values = _settings_of(_MINUTES)
        self.groups: dict[str, gr.Accordion] = {}
        for title, names in form.GROUPS.items():
            self.groups[title] = gr.Accordion(title, open=title == "Basic")
            with self.groups[title], gr.Row(equal_height=False):
                for name in names:
                    with gr.Column(min_width=260):
                        self.fields[name] = form.field(name, values[name], folders)
        self.groups[NETWORK] = gr.Accordion("Network", open=False)
        with self.groups[NETWORK], gr.Row(equal_height=False):
            with gr.Column(min_width=260):
                self.kind = gr.Radio(list(KINDS), value=KINDS[0], label="kind", info="Context as in the web UIs.")
                self.dtype = gr.Dropdown(list(MODEL_DTYPES), value=MODEL_DTYPES[0], label="dtype of the base model")
            with gr.Column(min_width=260):
                self.structure = gr.Textbox(
                    "1, 2, 1", label="layer structure", info="Widths relative to the context's."
                )
                self.norm = gr.Checkbox(network["norm"], label="layer norm")
            with gr.Column(min_width=260):
                self.activation = gr.Dropdown(list(ACTIVATIONS), value=network["activation"], label="activation")
                self.init = gr.Dropdown(list(INITS), value=network["init"], label="initialisation")
        self.network = (self.structure, self.norm, self.activation, self.init)

    def _connect(self) -> None:
        asked = [self.model, self.data, self.name, self.kind, self.dtype, *self.network, *self.fields.values()]
        shown_data = [self.gallery, self.place, self.about]
        filled = [*self.network, *self.fields.values()]
        page: Any = gr.context.Context.root_block
        page.load(self._opened, outputs=[self.model, self.data], **PRIVATE).then(
            self._shown, inputs=[self.data, self.place], outputs=shown_data, **PRIVATE
        ).then(self._cost, inputs=asked, outputs=self.cost, **PRIVATE)
        self.recipe.input(self._filled, inputs=[self.recipe], outputs=filled, **PRIVATE).then(
            self._cost, inputs=asked, outputs=self.cost, **PRIVATE
        )
        self.data.change(self._shown_anew, inputs=[self.data], outputs=shown_data, **PRIVATE).then(
            self._cost, inputs=asked, outputs=self.cost, **PRIVATE
        )
        self.place.input(self._shown, inputs=[self.data, self.place], outputs=shown_data, **PRIVATE)
        costing = ("batch_size", "max_steps", "max_epochs", "target_layers", "validation_split")
        changed: list[Any] = [
            self.model,
            self.kind,
            self.dtype,
            *self.network,
            *(self.fields[name] for name in costing),
        ]
        gr.on(
            [component.input for component in changed],
            self._cost,
            inputs=asked,
            outputs=self.cost,
            trigger_mode="always_last",
            **PRIVATE,
        )
        looked = [self.data, self.number, self.model, *(self.fields[n] for n in ("resolution", "bucketing"))]
        looked += [self.fields["bucket_step"], self.fields["bucket_max_aspect"]]
        seen = [self.crop, self.caption, self.about]
        self.gallery.select(self._chosen, inputs=[self.place], outputs=[self.number], **PRIVATE).then(
            self._looked_at, inputs=looked, outputs=seen, **PRIVATE
        )
        self.number.input(self._looked_at, inputs=looked, outputs=seen, **PRIVATE)
        self.save.click(
            self._caption_saved, inputs=[self.data, self.number, self.caption], outputs=[self.about], **PRIVATE
        ).then(
            lambda name, place: self._shown(name, place)[:2],
            inputs=[self.data, self.place],
            outputs=[self.gallery, self.place],
            **PRIVATE,
        )
        self.add.click(
            self._added, inputs=[self.new_data, self.files], outputs=[self.about, self.data, self.files], **PRIVATE
        )
        self.measure.click(self._measured, inputs=asked, outputs=self.said, concurrency_limit=1, **PRIVATE)
        self.start.click(
            self._start,
            inputs=[self.faulty, *asked],
            outputs=[self.said, self.started, self.faulty, *self.groups.values(), *self.fields.values()],
            **PRIVATE,
        ).success(
            fn=None,
            inputs=[self.started],
            js="(name) => { if (name) window.location.assign('/watch?run=' + encodeURIComponent(name)); }",
            **PRIVATE,
        )

    def _opened(self) -> tuple[Any, Any]:
        """The lists as they are now, when the page is opened or reloaded."""
        models, data = list(self.home.models()), list(self.home.datasets())
        return gr.Dropdown(models, value=models[0]), gr.Dropdown(data, value=data[0] if data else None)

    def _filled(self, recipe: str) -> list[Any]:
        """The settings of a recipe, in the order of the form; the form as it is for one's own."""
        if recipe == _OWN:
            return [gr.skip()] * (len(self.network) + len(self.fields))
        network, training = _settings_of(recipe)
        return [*network.values(), *training.values()]

    def _request(self, model: str, data: str, name: str, kind: str, dtype: str, *values: Any) -> RunRequest:
        """What the form asks for.

        Raises:
            Fault: something cannot be read, or is not there.
        """
        network, training = values[: len(self.network)], {}
        for field, value in zip(self.fields, values[len(self.network) :], strict=True):
            try:
                training[field] = form.entered(field, value)
                if settings()[field].kind == "folder" and training[field]:
                    training[field] = str(self.home.dataset(training[field]))
            except ValueError as error:
                raise Fault(field, str(error)) from None
        training["cache_dir"] = str(self.home.path / ".cache")
        return RunRequest(
            model=str(_about(MODEL, lambda: self.home.model(model))),
            data=str(_about(DATA, lambda: self.home.dataset(data))),
            name=name or "",
            kind=kind,
            training=training,
            network=_about(NETWORK, lambda: _network(kind, *network)),
            model_dtype=dtype,
        )

    def _cost(self, *values: Any) -> str:
        try:
            request = self._request(*values)
            planned = plan(request)
        except Fault as fault:
            return refused(fault)
        return sentence(
            f"{planned.parameters:,} parameters, a file of {size(planned.file_bytes)}, about "
            f"{size(planned.memory_bytes)} for the model, the network and the optimiser; "
            f"{planned.pictures:,} pictures, {planned.steps:,} steps."
        )

    @said
    def _measured(self, *values: Any) -> str:
        request = self._request(*values)
        planned = plan(request)
        seconds = seconds_per_step(request, self.home.path / ".measured")
        return f"A step took {seconds:.2g} s here, measured: {duration(seconds * planned.steps)} in all."

    def _start(self, marked: str, *values: Any) -> list[Any]:
        """Starts the run; or shows what is wrong, beside its field too."""
        try:
            request = self._request(*values)
            plan(request)
            run = self.runs.start(request)
        except ValueError as error:
            about = error.field if isinstance(error, Fault) else ""
            said = f"{form.called(about)}: {error}" if about in self.fields else str(error)
            return [refused(said), "", about, *self._marked(about, str(error), marked)]
        return [sentence(f"Started {run.name}"), run.name, "", *self._marked("", "", marked)]

    def _marked(self, about: str, fault: str, before: str) -> list[Any]:
        """Groups and fields, with the fault beside its field, whose group is open, and none where one was before.

        Nothing else is touched: somebody may be typing there.
        """
        opened = [about == title or about in form.GROUPS.get(title, ()) for title in self.groups]
        groups = [gr.Accordion(open=True) if one else gr.skip() for one in opened]
        changed = {about, before}
        fields = [form.marked(n, fault if n == about else "") if n in changed else gr.skip() for n in self.fields]
        return [*groups, *fields]

    def _dataset(self, name: str, again: bool = False) -> Dataset:
        if again or name not in self.read:
            self.read[name] = Dataset(self.home.dataset(name))
        return self.read[name]

    def _shown_anew(self, name: str) -> tuple[Any, Any, Any]:
        self.read.pop(name, None)
        return self._shown(name, 1)

    def _shown(self, name: str, place: float) -> tuple[Any, Any, Any]:
        try:
            data = self._dataset(name)
        except (ValueError, OSError) as error:
            return [], gr.Slider(visible=False), refused(error)
        pages = -(-len(data) // _PER_PAGE)
        first = (min(int(place), pages) - 1) * _PER_PAGE
        pictures = [(item.thumbnail, item.caption) for item in data.items(first, _PER_PAGE)]
        slider = gr.Slider(1, max(pages, 2), value=min(int(place), pages), visible=pages > 1)
        return pictures, slider, sentence(data.summary().rpartition(f"{data.folder}: ")[2])

    def _chosen(self, place: float, event: gr.SelectData) -> int:
        return (int(place) - 1) * _PER_PAGE + int(event.index)

    def _looked_at(
        self, data: str, number: float, model: str, side: Any, bucketing: bool, step: Any, aspect: Any
    ) -> tuple[Any, Any, Any]:
        try:
            side = int(side or side_of(self.home.model(model)))
            buckets = Buckets(side, min(int(step), side), float(aspect)) if bucketing else None
            read = self._dataset(data)
            picture, words = read.cropped(int(number), side, buckets)
            return element(picture, words), read.caption(int(number)), sentence(words)
        except (ValueError, TypeError, OSError) as error:
            return "", gr.skip(), refused(error)

    @said
    def _caption_saved(self, data: str, number: float, caption: str) -> str:
        self._dataset(data).write_caption(int(number), caption)
        return f"Saved the caption of picture {int(number)}."

    def _added(self, name: str, files: list[str] | None) -> tuple[Any, Any, Any]:
        try:
            folder = take_pictures(self.home, name, files or [])
        except ValueError as error:
            return refused(error), gr.skip(), gr.skip()
        return sentence(f"Added {folder.name}"), gr.Dropdown(list(self.home.datasets()), value=folder.name), None


def _settings_of(recipe: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the fields of the network and of the settings show for a recipe."""
    if recipe == _MINUTES:
        study = Protocol()
        training, network = dict(study.training), dict(study.network)
        training |= {"preview_every": 50, "preview_prompts": ["digit three", "digit seven"], "max_epochs": 200}
        training |= {"preview_guidance": study.guidance, "validation_split": 32, "validate_every": 50}
    else:
        training, network = RECIPES[recipe].training_with({}), RECIPES[recipe].network_with({})
    fields = {
        "structure": ", ".join(f"{width:g}" for width in network["layer_structure"]),
        "norm": network.get("layer_norm", False),
        "activation": network["activation"],
        "init": network["init"],
    }
    return fields, {name: form.shown(name, training.get(name, settings()[name].default)) for name in form.NAMES}


def _about(field: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except ValueError as error:
        raise Fault(field, str(error)) from None


def _network(kind: str, structure: str, norm: bool, activation: str, init: str) -> dict[str, Any]:
    """Arguments of a context network; those of one that generates weights are its own."""
    if kind != KINDS[0]:
        return {}
    try:
        widths = [float(part) for part in structure.split(",")]
    except ValueError:
        raise InputError(f"layer structure must be numbers such as 1, 2, 1, not {structure!r}") from None
    return {"layer_structure": widths, "layer_norm": norm, "activation": activation, "init": init}
