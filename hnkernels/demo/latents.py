"""From uint8 pictures to an autoencoder's latents and back, in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_BATCH = 32  # larger batches fall out of the cache and take twice as long


def to_tensor(images: np.ndarray) -> Tensor:
    """Turns uint8 [n, H, W, 3] into the autoencoder's range: fp32 [n, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_images(pictures: Tensor) -> np.ndarray:
    """The inverse of `to_tensor`: clamps [n, 3, H, W] to [-1, 1] and rounds to uint8 [n, H, W, 3]."""
    return ((pictures.clamp(-1.0, 1.0) + 1.0) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> Tensor:
    """Posterior means of uint8 [n, H, W, 3], unscaled (multiply by vae.config.scaling_factor for the UNet)."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in to_tensor(images).split(_BATCH)])


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """Pictures (uint8 [n, H, W, 3]) of unscaled latents."""
    return to_images(torch.cat([vae.decode(part).sample for part in latents.split(_BATCH)]))
