"""What both demos share: settings, digits drawn with a pipeline, and the trainer's config."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hnkernels.demo.glyphs import DIGIT_WORDS, caption
from hnkernels.training.persistence.run_folder import LOCK, RunFolder


@dataclass(frozen=True)
class JobSettings:
    """How a demo trains and samples."""

    learning_rate: str
    steps: int
    batch_size: int
    caption_dropout: float
    guidance: float
    inference_steps: int


def remove_earlier_run(out: Path) -> None:
    """Removes the training images and the run that an earlier demo left in ``out``.

    Raises:
        ValueError: that demo is still training.
    """
    folder = RunFolder(out / "training")
    with folder.locked():
        shutil.rmtree(out / "data", ignore_errors=True)
        for path in folder.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()


def draw_digits(pipeline: Any, settings: JobSettings, seeds: int, seed: int) -> np.ndarray:
    """Pictures uint8 [10 · seeds, 32, 32, 3], sorted by digit; the same seeds give the same starting noise."""
    images = []
    for digit in range(10):
        generators = [torch.Generator().manual_seed(1000 * seed + s) for s in range(seeds)]
        drawn = pipeline(
            [caption(digit)] * seeds,
            num_inference_steps=settings.inference_steps,
            guidance_scale=settings.guidance,
            generator=generators,
            output_type="np",
        ).images
        images.append((drawn * 255).round().astype(np.uint8))
    return np.concatenate(images)


def digits_drawn(pictures: np.ndarray) -> np.ndarray:
    """Which digit was asked for, for every picture of ``draw_digits``."""
    return np.repeat(np.arange(len(DIGIT_WORDS)), len(pictures) // len(DIGIT_WORDS))


def training_config(settings: JobSettings, out: Path, seed: int) -> dict[str, Any]:
    """The trainer's config for a run under ``out / "training"``."""
    return {
        "learning_rate": settings.learning_rate,
        "batch_size": settings.batch_size,
        "max_epochs": settings.steps,
        "max_steps": settings.steps,
        "target_layers": ["attn1", "attn2"],
        "caption_dropout": settings.caption_dropout,
        "latent_sampling": "deterministic",  # as the embedded model was trained
        "checkpoint_every": 0,
        "seed": seed,
        "output_dir": str(out / "training"),
    }
