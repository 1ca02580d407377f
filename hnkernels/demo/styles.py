"""The second job: one weight hypernetwork learns several styles at once; its condition alone says which one is drawn.

Styles are switched, and mixed in ways that were never trained, without touching the model: every picture of a batch has
low-rank weights of its own, generated from the name of its style or from a mixture of names.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import hnkernels as hn
from hnkernels.adapter.weight_adapter import WeightAdapter
from hnkernels.assets import TINY_SD
from hnkernels.convert.model_files import write_tensors
from hnkernels.demo.figures import digit_sheet, loss_curve, sheet
from hnkernels.demo.glyphs import Pictures, printed_glyphs
from hnkernels.demo.job import JobSettings, digits_drawn, draw_digits, remove_earlier_run, training_config
from hnkernels.demo.measures import ink_share, slant, stroke_width
from hnkernels.demo.scores import PRINT, Judges, train_judges_on
from hnkernels.demo.style_pictures import STYLES, styled_digits
from hnkernels.pipeline import load_pipeline

SWEEP = (0.0, 0.25, 0.5, 0.75, 1.0)
PAIRS = {  # and what must change on the way from one style to the other
    ("leaning", "slanted"): ("slant",),
    ("slanted", "bold"): ("slant", "stroke_width"),
    ("handwriting", "slanted"): ("slant", "stroke_width"),
    ("handwriting", "bold"): ("stroke_width", "ink"),
}
EXPORTED = "slanted"
TAUGHT = dict.fromkeys(STYLES, 250) | {"handwriting": 600}  # pictures; of what is real there is more to learn
JUDGE_PICTURES = {"train": 250, "held_out": 100}  # per style
SEEDS_PER_DIGIT = 6
SHOWN_SEEDS = 2
SHOWN_DIGITS = (2, 5, 8)
NAME = "styles"

_MEASURES = {"slant": slant, "stroke_width": stroke_width, "ink": ink_share}
_CLASSES = ("print", *STYLES)


@dataclass(frozen=True)
class Settings(JobSettings):
    """What the demo trains and how it samples; found by trying on the embedded model."""

    learning_rate: str = "2e-4:20, 1e-3:450, 5e-4:750, 2e-4:1000, 8e-5:1130, 3e-5"
    steps: int = 1250
    batch_size: int = 32
    caption_dropout: float = 0.1
    guidance: float = 3.0
    inference_steps: int = 20
    rank: int = 16
    hidden_dim: int = 32
    depth: int = 0  # of the weight generator: without MLPs, mixtures change evenly from one style to the other


def run_styles_demo(out: Path, seed: int = 0, settings: Settings | None = None) -> dict[str, Any]:
    """Trains one weight hypernetwork on four styles of digits, samples every style and mixtures of them, scores all.

    Writes into ``out`` (what an earlier demo left there is replaced): ``styles.png``, ``interpolation.png``,
    ``loss.png``, ``styles.safetensors`` (the network), ``slanted-lora.safetensors`` (one style as an ordinary LoRA),
    ``summary.json``, the training images under ``data/`` and the run under ``training/``.

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
    judges = train_style_judges(pipeline.vae, seed)
    taught = {style: styled_digits(style, count, seed) for style, count in TAUGHT.items()}
    write_styles(taught, out / "data")

    torch.manual_seed(seed)
    net = hn.WeightHypernetwork(
        model=pipeline,
        embedding_dim=pipeline.unet.config.cross_attention_dim,
        hidden_dim=settings.hidden_dim,
        rank=settings.rank,
        pooling="mean",
        styles=STYLES,
        name=NAME,
    )
    net.generator = hn.WeightGenerator(settings.hidden_dim, net.layers, depth=settings.depth)
    print(f"training one weight hypernetwork on {len(STYLES)} styles: {', '.join(STYLES)} …", flush=True)
    config = training_config(settings, out, seed)
    result = hn.HypernetworkTrainer(net, pipeline, config, out / "data").train()
    for file in result.files:
        shutil.copyfile(file, out / file.name)

    net = hn.WeightHypernetwork.load(out / f"{NAME}.safetensors")
    write_tensors(out / f"{EXPORTED}-lora.safetensors", net.generate_weights(EXPORTED).to_lora_state_dict())
    print("sampling the base model, every style, and mixtures that were never trained …", flush=True)
    base = draw_digits(pipeline, settings, SEEDS_PER_DIGIT, seed)
    with hn.attach(pipeline, net) as adapter:
        drawn = {style: _draw(adapter, style, pipeline, settings, seed) for style in STYLES}
        sweeps = {
            (a, b): [
                drawn[a],
                *(_draw(adapter, mixture(a, b, t), pipeline, settings, seed) for t in SWEEP[1:-1]),
                drawn[b],
            ]
            for a, b in PAIRS
        }

    digit_sheet({"base": base, **drawn}, SEEDS_PER_DIGIT, SHOWN_SEEDS).save(out / "styles.png")
    interpolation_sheet(sweeps).save(out / "interpolation.png")
    loss_curve(result.losses, out / "loss.png")
    summary = {
        "base": _scores(judges, base),
        "styles": {
            style: {
                "style_accuracy": {
                    "before": _taken_for(judges, base)[style],
                    "after": _taken_for(judges, images)[style],
                },
                **_scores(judges, images),
                "training_pictures": _measured(taught[style].images),
            }
            for style, images in drawn.items()
        },
        "mixtures": {f"{a} to {b}": _sweep(judges, sweeps[a, b], PAIRS[a, b]) for a, b in PAIRS},
        "judges": {"style_accuracy": judges.style_accuracy, "content_accuracy": judges.content_accuracy_held_out},
        "training": {
            "steps": result.step,
            "final_loss": result.loss,
            "iterations_per_second": round(result.iterations_per_second, 3),
        },
        "pictures_scored": len(base),
        "seconds": round(time.perf_counter() - started, 1),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for table in (_styles_table(summary), _mixtures_table(summary)):
        Console().print(table)
    print(f"pictures, networks and summary are in {out}", flush=True)
    return summary


def train_style_judges(vae: Any, seed: int) -> Judges:
    """Judges of all styles; their style 0 is print as the base model knows it, the others follow in order."""
    sets = {}
    for offset, (split, count) in enumerate(JUDGE_PICTURES.items()):
        print_seed = seed + 1000 * (1 + offset)  # none of the pictures that the network is taught
        sets[split] = {PRINT: printed_glyphs(count, print_seed, digit_share=1.0)}
        for number, style in enumerate(STYLES, 1):
            sets[split][number] = styled_digits(style, count, print_seed, split)
    return train_judges_on(sets["train"], sets["held_out"], vae, seed)


def write_styles(taught: Mapping[str, Pictures], folder: Path) -> None:
    """PNG files and a ``metadata.jsonl`` with captions and conditions, as any training folder."""
    folder.mkdir(parents=True)
    lines = []
    for style, pictures in taught.items():
        for index, (image, text) in enumerate(zip(pictures.images, pictures.captions, strict=True)):
            name = f"{style}-{index:04d}.png"
            Image.fromarray(image).save(folder / name)
            lines.append(json.dumps({"file_name": name, "text": text, "condition": style}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def mixture(a: str, b: str, t: float) -> dict[str, float]:
    """The condition between two styles: t = 0 is a, 1 is b."""
    return {a: 1 - t, b: t}


def interpolation_sheet(sweeps: Mapping[tuple[str, str], Sequence[np.ndarray]]) -> Image.Image:
    """Mixing shares as columns; for every pair of styles a few digits as rows, each from one starting noise."""
    shown = [digit * SEEDS_PER_DIGIT for digit in SHOWN_DIGITS]
    blocks = {f"{a} to {b}": np.stack([images[shown] for images in sweep], axis=1) for (a, b), sweep in sweeps.items()}
    return sheet(blocks, heads=[f"t = {t:g}" for t in SWEEP])


def _draw(adapter: WeightAdapter, condition: Any, pipeline: Any, settings: Settings, seed: int) -> np.ndarray:
    """The style acts in both halves of guidance, which then strengthens the digit and not the style."""
    with adapter.condition(condition, guidance=False):
        return draw_digits(pipeline, settings, SEEDS_PER_DIGIT, seed)


def _scores(judges: Judges, pictures: np.ndarray) -> dict[str, Any]:
    return {
        "content_accuracy": round(judges.content_accuracy(pictures, digits_drawn(pictures)), 4),
        "taken_for": _taken_for(judges, pictures),
        **_measured(pictures),
    }


def _taken_for(judges: Judges, pictures: np.ndarray) -> dict[str, float]:
    """Share of the pictures that the judge takes for each style, or for ordinary print."""
    return {name: round(judges.style_score(pictures, number), 4) for number, name in enumerate(_CLASSES)}


def _measured(pictures: np.ndarray) -> dict[str, float]:
    return {name: round(measure(pictures), 3) for name, measure in _MEASURES.items()}


def _sweep(judges: Judges, sweep: Sequence[np.ndarray], quantities: Sequence[str]) -> dict[str, Any]:
    """Scores along the way from one style to another, and whether what must change does so step by step."""
    scores = [_scores(judges, pictures) for pictures in sweep]
    courses = {name: [score[name] for score in scores] for name in quantities}
    return {
        "at": {f"{t:g}": score for t, score in zip(SWEEP, scores, strict=True)},
        "least_content_accuracy": min(score["content_accuracy"] for score in scores[1:-1]),
        "course": {
            name: {"values": values, "monotonic": is_monotonic(values), "middle_between": lies_between(values)}
            for name, values in courses.items()
        },
    }


def is_monotonic(values: Sequence[float]) -> bool:
    """Whether they rise at every step, or fall at every step."""
    steps = np.diff(values)
    return bool((steps > 0).all() or (steps < 0).all())


def lies_between(values: Sequence[float]) -> bool:
    """Whether the middle one lies between the first and the last."""
    low, high = sorted((values[0], values[-1]))
    return low < values[len(values) // 2] < high


def _styles_table(summary: dict[str, Any]) -> Table:
    table = Table(
        *("condition", "style", "before", "digit", "slant", "stroke", "ink"),
        title="one weight hypernetwork on the embedded model",
        caption="style: taken for it; before: by the base model; digit: the one asked for",
        box=None,
    )
    base = summary["base"]
    table.add_row("none (the base model)", "", "", f"{base['content_accuracy']:.2f}", *_measures_row(base))
    for style, scores in summary["styles"].items():
        shares = [f"{scores['style_accuracy'][when]:.2f}" for when in ("after", "before")]
        table.add_row(style, *shares, f"{scores['content_accuracy']:.2f}", *_measures_row(scores))
        table.add_row("  what was taught", "", "", "", *_measures_row(scores["training_pictures"]), style="dim")
    return table


def _measures_row(scores: Mapping[str, float]) -> tuple[str, str, str]:
    return f"{scores['slant']:.1f}°", f"{scores['stroke_width']:.2f}", f"{scores['ink']:.3f}"


def _mixtures_table(summary: dict[str, Any]) -> Table:
    table = Table(
        *("mixture", *(f"t = {t:g}" for t in SWEEP), "monotonic", "between"),
        title="mixtures that were never trained",
        caption="between: the middle lies between the ends",
        box=None,
    )
    for pair, scores in summary["mixtures"].items():
        contents = [score["content_accuracy"] for score in scores["at"].values()]
        table.add_row(pair)
        table.add_row("  digit asked for", *(f"{value:.2f}" for value in contents))
        for name, course in scores["course"].items():
            verdicts = ["yes" if course[verdict] else "no" for verdict in ("monotonic", "middle_between")]
            table.add_row(f"  {name.replace('_', ' ')}", *(f"{value:.2f}" for value in course["values"]), *verdicts)
    return table
