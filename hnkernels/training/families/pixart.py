"""PixArt-α and PixArt-Σ: transformers that see the text of T5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hnkernels.training.families.family import Batch, Family, diffusion_scheduler


class PixArt(Family):
    label = "PixArt-α and PixArt-Σ"
    text_keys = ("encoder_hidden_states", "encoder_attention_mask")

    def __init__(self, model: Any, pipeline: Any = None):
        super().__init__(model, pipeline)
        self._told_sizes = bool(model.config.get("use_additional_conditions"))
        self.picture_keys = ("resolution", "aspect_ratio") if self._told_sizes else ()

    @classmethod
    def has(cls, model: Any, pipeline: Any = None) -> bool:
        return type(model).__name__ == "PixArtTransformer2DModel"

    @property
    def version(self) -> str:
        return "pixart"

    def default_scheduler(self) -> Any:
        return diffusion_scheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")

    @property
    def text_width(self) -> int | None:
        return self.model.config.get("caption_channels")

    def text(self, captions: Sequence[str], clip_skip: int = 1) -> dict[str, Tensor]:
        embeddings, mask, _, _ = self.pipeline.encode_prompt(list(captions), do_classifier_free_guidance=False)
        return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}

    def of_picture(self, original: tuple[int, int], crop: tuple[int, int], size: tuple[int, int]) -> dict[str, Tensor]:
        if not self._told_sizes:
            return {}
        width, height = size
        return {
            "resolution": torch.tensor([height, width], dtype=torch.float32),
            "aspect_ratio": torch.tensor([height / width]),
        }

    def predict(self, noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        told = {key: self.given(batch, key) if self._told_sizes else None for key in ("resolution", "aspect_ratio")}
        prediction = self.model(
            noisy,
            encoder_hidden_states=self.given(batch, "encoder_hidden_states"),
            encoder_attention_mask=self.given(batch, "encoder_attention_mask"),
            timestep=timesteps,
            added_cond_kwargs=told,
        ).sample
        return prediction[:, : noisy.shape[1]]  # the other half is a variance
