"""UNets that see further channels beside the noisy latents: inpainting, and editing by instruction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hnkernels.training.families.family import Batch
from hnkernels.training.families.stable_diffusion import StableDiffusion, channels_beside
from hnkernels.training.families.stable_diffusion_xl import StableDiffusionXL, numbers_of


class _Masked(StableDiffusion):
    """Sees a mask of what is to be painted and the latents of the rest."""

    picture_keys: tuple[str, ...] = ("mask", "masked_latents")

    def predict(self, noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        further = [self.given(batch, "mask"), self.given(batch, "masked_latents")]
        return super().predict(torch.cat([noisy, *further], 1), timesteps, batch)


class _Edited(StableDiffusion):
    """Sees the latents of the picture that is to be edited."""

    picture_keys: tuple[str, ...] = ("source_latents",)

    def predict(self, noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        return super().predict(torch.cat([noisy, self.given(batch, "source_latents")], 1), timesteps, batch)


class Inpainting(_Masked):
    label = "Stable Diffusion inpainting"

    @classmethod
    def has(cls, model: Any, pipeline: Any = None) -> bool:
        return cls.conditioned_on_text(model) and channels_beside(model) == model.config["out_channels"] + 1


class InstructPix2Pix(_Edited):
    label = "InstructPix2Pix"

    @classmethod
    def has(cls, model: Any, pipeline: Any = None) -> bool:
        return cls.conditioned_on_text(model) and channels_beside(model) == model.config["out_channels"]


class InpaintingXL(_Masked, StableDiffusionXL):
    label = "Stable Diffusion XL inpainting"
    picture_keys = ("mask", "masked_latents", "time_ids")

    @classmethod
    def has(cls, model: Any, pipeline: Any = None) -> bool:
        return numbers_of(model, pipeline) == 6 and channels_beside(model) == model.config["out_channels"] + 1
