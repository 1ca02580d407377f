"""The tab in which hypernetworks are trained, with what Gradio 3 and 4 have in common."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from modules import sd_models, shared_items  # the web UI's own

from hnkernels.errors import InputError
from hnkernels.integrations.training.trainer import Trainer
from hnkernels.integrations.training.wish import Wish
from hnkernels.integrations.webui import settings
from hnkernels.training.recipes import RECIPES

_SECONDS = 1.0  # between two looks at a run
TRAINER = Trainer()


def tab() -> list[tuple[Any, str, str]]:
    """What the web UI adds to its tabs: content, title and identifier."""
    with gr.Blocks(analytics_enabled=False) as content:
        with gr.Row():
            with gr.Column():
                model = gr.Dropdown(list(models()), label="Base model, which is not changed")
                data = gr.Textbox("", label="Folder of pictures, with captions in .txt files beside them")
                name = gr.Textbox("my-style", label="Name of the hypernetwork")
                recipe = gr.Dropdown(list(RECIPES), value="style", label="Recipe")
                steps = gr.Number(0, label="Steps (0: those of the recipe)")
                rate = gr.Textbox("", label="Learning rate, or a schedule (empty: that of the recipe)")
                with gr.Row():
                    start = gr.Button("Train", variant="primary")
                    stop = gr.Button("Stop")
                    look = gr.Button("Look again")
                    take = gr.Button("Copy to the web UI's hypernetworks")
            said = gr.Textbox(TRAINER.said(), label="What the run says", lines=16, interactive=False)
        start.click(begin, inputs=[model, data, name, recipe, steps, rate], outputs=[said])
        stop.click(end, inputs=[], outputs=[said])
        look.click(TRAINER.said, inputs=[], outputs=[said])
        take.click(copy, inputs=[], outputs=[said])
    return [(content, "Hypernetwork training", "hnkernels")]


def models() -> dict[str, Path]:
    """Models that can be trained on, by the name that is shown: diffusers folders beside the runs, and checkpoints."""
    folders = settings.home() / "models"
    own = sorted(path.parent for path in folders.glob("*/model_index.json"))
    files = {title: Path(info.filename) for title, info in sd_models.checkpoints_list.items()}
    return {**{f"folder {path.name}": path for path in own}, **files}


def begin(model: str, data: str, name: str, recipe: str, steps: float, rate: str) -> Iterator[str]:
    """Starts a run and shows what it says until it ends, or until nobody looks any more."""
    try:
        known = models()
        path = known.get(model)
        if path is None:
            raise InputError(f"choose one of the models: {', '.join(known) or 'none are there'}")
        if not data.strip():
            raise InputError("name a folder with pictures and their captions")
        TRAINER.python = settings.python()
        TRAINER.start(
            Wish(path, Path(data.strip()), name.strip(), recipe, int(steps or 0), rate or ""), settings.home()
        )
    except ValueError as error:
        yield f"Not started: {error}"
        return
    while TRAINER.running:
        yield TRAINER.said()
        time.sleep(_SECONDS)
    yield TRAINER.said()


def end() -> str:
    """Stops the run."""
    try:
        TRAINER.stop()
    except ValueError as error:
        return str(error)
    return TRAINER.said()


def copy() -> str:
    """Copies what was trained to where prompts find it."""
    try:
        copied = TRAINER.take(settings.hypernetworks())
    except (ValueError, OSError) as error:
        return str(error)
    shared_items.reload_hypernetworks()
    return "\n".join(f"Copied: {path}" for path in copied)
