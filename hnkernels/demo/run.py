"""The main job: teach the embedded model handwriting with a hypernetwork, and prove that it learned."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import hnkernels as hn
from hnkernels.adapter.layers import find_attention
from hnkernels.assets import TINY_SD
from hnkernels.demo.compare import compare_with_a1111_way
from hnkernels.demo.figures import before_after, loss_curve
from hnkernels.demo.glyphs import handwritten_digits
from hnkernels.demo.job import JobSettings, digits_drawn, draw_digits, remove_earlier_run, training_config
from hnkernels.demo.sample_pictures import write_image_folder
from hnkernels.demo.scores import Judges, train_judges
from hnkernels.pipeline import load_pipeline

STRENGTHS = (0.0, 0.5, 1.0)
SEEDS_PER_DIGIT = 10
SHOWN_SEEDS = 3
NAME = "handwriting"


@dataclass(frozen=True)
class Settings(JobSettings):
    """What the demo trains and how it samples; found by trying on the embedded model."""

    learning_rate: str = "1e-3:20, 3e-3:350, 2e-3:550, 1e-3:700, 4e-4:800, 1e-4"
    steps: int = 900
    batch_size: int = 32
    caption_dropout: float = 0.2
    guidance: float = 3.0
    inference_steps: int = 20
    layer_structure: tuple[float, ...] = (1, 4, 1)
    activation: str = "silu"


def run_demo(out: Path, seed: int = 0, settings: Settings | None = None) -> dict[str, Any]:
    """Trains a hypernetwork on real handwritten digits, samples before and after, scores both, writes everything.

    Writes into ``out`` (what an earlier demo left there is replaced): ``before_after.png``, ``loss.png``,
    ``handwriting.pt`` and ``.safetensors``, ``summary.json``, the training images under ``data/`` and the run under
    ``training/``.

    Args:
        out: folder.
        seed: of everything random.
        settings: other settings than the demo's own, for a quick trial.

    Returns:
        The content of ``summary.json``.
    """
    settings = settings or Settings()
    started = time.perf_counter()
    remove_earlier_run(out)
    pipeline = load_pipeline(TINY_SD)
    pipeline.set_progress_bar_config(disable=True)

    print("training two small classifiers as judges …", flush=True)
    judges = train_judges(pipeline.vae, seed)
    written = handwritten_digits("train")
    write_image_folder(written, out / "data")

    torch.manual_seed(seed)
    sizes = sorted({spec.width for spec in find_attention(pipeline.unet)})
    net = hn.Hypernetwork(sizes, settings.layer_structure, activation=settings.activation, init="identity", name=NAME)
    print(f"training a hypernetwork of widths {sizes} on {len(written)} handwritten digits …", flush=True)
    trainer = hn.HypernetworkTrainer(net, pipeline, training_config(settings, out, seed), out / "data")
    result = trainer.train()
    for file in result.files:
        shutil.copyfile(file, out / file.name)

    print("sampling at strengths 0, 0.5 and 1 …", flush=True)
    with hn.attach(pipeline, hn.load_hypernetwork(out / f"{NAME}.pt")) as adapter:
        pictures = {}
        for strength in STRENGTHS:
            adapter.strength = strength
            pictures[strength] = draw_digits(pipeline, settings, SEEDS_PER_DIGIT, seed)
    speed = compare_with_a1111_way(net, pipeline, out / "data", settings.batch_size)

    before_after(pictures, SEEDS_PER_DIGIT, SHOWN_SEEDS).save(out / "before_after.png")
    loss_curve(result.losses, out / "loss.png")
    summary = {
        "style_score": {"before": _style(judges, pictures[0.0]), "after": _style(judges, pictures[1.0])},
        "content_accuracy": {"before": _content(judges, pictures[0.0]), "after": _content(judges, pictures[1.0])},
        "at_half_strength": {
            "style_score": _style(judges, pictures[0.5]),
            "content_accuracy": _content(judges, pictures[0.5]),
        },
        "judges": {"style_accuracy": judges.style_accuracy, "content_accuracy": judges.content_accuracy_held_out},
        "training": {
            "steps": result.step,
            "final_loss": result.loss,
            **speed,
        },
        "pictures_scored": len(pictures[1.0]),
        "seconds": round(time.perf_counter() - started, 1),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    Console().print(_table(summary))
    print(f"pictures, networks and summary are in {out}", flush=True)
    return summary


def _style(judges: Judges, pictures: np.ndarray) -> float:
    return round(judges.style_score(pictures), 4)


def _content(judges: Judges, pictures: np.ndarray) -> float:
    return round(judges.content_accuracy(pictures, digits_drawn(pictures)), 4)


def _table(summary: dict[str, Any]) -> Table:
    table = Table(title="hypernetwork on the embedded model")
    for column in ("", "before", "after"):
        table.add_column(column)
    for name, key in (
        ("style: taken for handwriting", "style_score"),
        ("content: the digit asked for", "content_accuracy"),
    ):
        table.add_row(name, *(f"{summary[key][when]:.2f}" for when in ("before", "after")))
    training = summary["training"]
    rates = [training["iterations_per_second_a1111_way"], training["iterations_per_second"]]
    table.add_row("training steps per second: A1111 way, ours", *(f"{rate:.2f}" for rate in rates))
    table.add_row("wall time, seconds", "", f"{summary['seconds']:.0f}")
    return table
