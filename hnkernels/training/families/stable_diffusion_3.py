"""Stable Diffusion 3 and 3.5: transformers with joint attention, trained by flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hnkernels.training.families.family import Batch, Family, flow_scheduler


class StableDiffusion3(Family):
    label = "Stable Diffusion 3"
    text_keys = ("encoder_hidden_states", "pooled_projections")

    @classmethod
    def has(cls, model: Any, pipeline: Any = None) -> bool:
        return type(model).__name__ == "SD3Transformer2DModel"

    @property
    def version(self) -> str:
        return "sd3m"

    def default_scheduler(self) -> Any:
        return flow_scheduler(shift=3.0)

    @property
    def text_width(self) -> int | None:
        return int(self.model.config["joint_attention_dim"])

    @property
    def multiple(self) -> int:
        return self._scale * int(self.model.config["patch_size"])

    def text(self, captions: Sequence[str], clip_skip: int = 1) -> dict[str, Tensor]:
        texts = list(captions)
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(texts, texts, texts, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}

    def predict(self, noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        prediction: Tensor = self.model(
            hidden_states=noisy,
            encoder_hidden_states=self.given(batch, "encoder_hidden_states"),
            pooled_projections=self.given(batch, "pooled_projections"),
            timestep=timesteps,
        ).sample
        return prediction
