"""Sana: transformers that see the text of Gemma, on latents of a deep autoencoder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hnkernels.training.families.family import Batch, Family, flow_scheduler


class Sana(Family):
    label = "Sana"
    text_keys = ("encoder_hidden_states", "encoder_attention_mask")

    @classmethod
    def has(cls, model: Any, pipeline: Any = None) -> bool:
        return type(model).__name__ == "SanaTransformer2DModel"

    @property
    def version(self) -> str:
        return "sana"

    def default_scheduler(self) -> Any:
        return flow_scheduler(shift=3.0)

    @property
    def text_width(self) -> int | None:
        return int(self.model.config["caption_channels"])

    @property
    def _scale(self) -> int:
        return int(self.pipeline.vae_scale_factor)

    def text(self, captions: Sequence[str], clip_skip: int = 1) -> dict[str, Tensor]:
        # The pipeline puts an instruction before every prompt, which is a default of its call alone.
        call = inspect.signature(type(self.pipeline).__call__).parameters
        instruction = call["complex_human_instruction"].default if "complex_human_instruction" in call else None
        embeddings, mask, _, _ = self.pipeline.encode_prompt(
            list(captions), do_classifier_free_guidance=False, complex_human_instruction=instruction
        )
        return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent.float() * vae.config["scaling_factor"]
        return latents, torch.zeros_like(latents)

    def predict(self, noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        prediction: Tensor = self.model(
            noisy,
            encoder_hidden_states=self.given(batch, "encoder_hidden_states"),
            encoder_attention_mask=self.given(batch, "encoder_attention_mask"),
            timestep=timesteps * self.model.config["timestep_scale"],
        ).sample
        return prediction
