"""Pictures of how far a training run has come."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from hnkernels.adapter import WeightAdapter
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.text_encoder import text_embedding


def write_preview(pipeline: Any, config: TrainingConfig, path: Path, adapter: Any) -> None:
    """Samples ``config.preview_prompts`` with the run's seed and writes them side by side as one image.

    Args:
        pipeline: the diffusers pipeline with the network attached, in eval mode.
        config: the run's config.
        path: the image file; folders are made.
        adapter: the network's.
    """
    from PIL import Image

    bar = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(disable=True)
    try:
        images = []
        for number, prompt in enumerate(config.preview_prompts):
            with ExitStack() as conditioned:
                if isinstance(adapter, WeightAdapter):
                    given = config.preview_conditions
                    condition = given[number] if given else text_embedding(pipeline, prompt)
                    guidance = config.preview_guidance > 1
                    conditioned.enter_context(adapter.condition(condition, guidance=guidance))
                images += pipeline(
                    prompt,
                    num_inference_steps=config.preview_inference_steps,
                    guidance_scale=config.preview_guidance,
                    generator=torch.Generator().manual_seed(config.seed),
                ).images
    finally:
        pipeline.set_progress_bar_config(**{"disable": False, **bar})
    sheet = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)), "white")
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
