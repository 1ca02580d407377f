"""Pictures of how far a training run has come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hnkernels.training.config import TrainingConfig


def write_preview(pipeline: Any, config: TrainingConfig, path: Path) -> None:
    """Samples ``config.preview_prompts`` with the run's seed and writes them side by side as one image.

    Args:
        pipeline: the diffusers pipeline with the network attached, in eval mode.
        config: the run's config.
        path: the image file; folders are made.
    """
    from PIL import Image

    bar = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(disable=True)
    try:
        images = [
            pipeline(
                prompt,
                num_inference_steps=config.preview_inference_steps,
                guidance_scale=config.preview_guidance,
                generator=torch.Generator().manual_seed(config.seed),
            ).images[0]
            for prompt in config.preview_prompts
        ]
    finally:
        pipeline.set_progress_bar_config(**{"disable": False, **bar})
    sheet = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)), "white")
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
