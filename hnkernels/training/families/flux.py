"""Flux: transformers with joint attention that read patches of latents as a sequence, trained by flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hnkernels.training.families.family import Batch, Family, flow_scheduler, per_sample
from hnkernels.training.noising import TIMESTEPS

_GUIDANCE = 1.0
"""Told to models distilled from guidance: training on pictures is without it."""
_SIDE = 1024
_PATCH = 2


class Flux(Family):
    label = "Flux"
    text_keys = ("encoder_hidden_states", "pooled_projections")

    @classmethod
    def has(cls, model: Any, pipeline: Any = None) -> bool:
        return type(model).__name__ == "FluxTransformer2DModel"

    @property
    def version(self) -> str:
        return "flux1"

    def default_scheduler(self) -> Any:
        return flow_scheduler(use_dynamic_shifting=True)

    @property
    def latent_channels(self) -> int:
        return int(self.model.config["in_channels"]) // _PATCH**2

    @property
    def text_width(self) -> int | None:
        return int(self.model.config["joint_attention_dim"])

    @property
    def side(self) -> int:
        return _SIDE

    @property
    def multiple(self) -> int:
        return self._scale * _PATCH

    def text(self, captions: Sequence[str], clip_skip: int = 1) -> dict[str, Tensor]:
        embeddings, pooled, _ = self.pipeline.encode_prompt(list(captions), list(captions))
        return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}

    def predict(self, noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        text = self.given(batch, "encoder_hidden_states")
        guided = self.model.config.get("guidance_embeds")
        prediction = self.model(
            hidden_states=packed(noisy),
            encoder_hidden_states=text,
            pooled_projections=self.given(batch, "pooled_projections"),
            timestep=(timesteps / TIMESTEPS).to(noisy.dtype),
            guidance=per_sample(_GUIDANCE, noisy) if guided else None,
            img_ids=_places(noisy),
            txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
        ).sample
        return unpacked(prediction, noisy.shape)


def packed(latents: Tensor) -> Tensor:
    """Patches of 2 × 2 latents as a sequence. Shape: [B, C, h, w] → [B, h·w/4, 4·C]."""
    b, c, h, w = latents.shape
    return latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpacked(sequence: Tensor, shape: torch.Size) -> Tensor:
    """What ``packed`` undid, in this shape."""
    b, c, h, w = shape
    return sequence.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(shape)


def _places(latents: Tensor) -> Tensor:
    """Row and column of every patch, [h·w/4, 3]; the first entry is 0."""
    rows, columns = (torch.arange(n // 2, device=latents.device, dtype=latents.dtype) for n in latents.shape[-2:])
    grid = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(grid[0]), *grid], -1).flatten(0, 1)
