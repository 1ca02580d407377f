"""The kinds of models that can be trained on, one small file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hnkernels.adapter.layers import denoiser
from hnkernels.errors import InputError
from hnkernels.training.families.concatenated import Inpainting, InpaintingXL, InstructPix2Pix
from hnkernels.training.families.family import Family
from hnkernels.training.families.flux import Flux
from hnkernels.training.families.pixart import PixArt
from hnkernels.training.families.sana import Sana
from hnkernels.training.families.stable_diffusion import StableDiffusion
from hnkernels.training.families.stable_diffusion_3 import StableDiffusion3
from hnkernels.training.families.stable_diffusion_xl import StableDiffusionXL, StableDiffusionXLRefiner

FAMILIES: tuple[type[Family], ...] = (
    *(StableDiffusion, Inpainting, InstructPix2Pix),
    *(StableDiffusionXL, StableDiffusionXLRefiner, InpaintingXL),
    *(PixArt, Sana, StableDiffusion3, Flux),
)


def family_of(model: Any) -> Family:
    """What kind of model this is.

    Args:
        model: a diffusers pipeline, or its UNet or transformer.

    Raises:
        ValueError: it is of none that can be trained on; the message names these.
    """
    inside: Any = denoiser(model)
    pipeline = None if isinstance(model, nn.Module) else model
    config = getattr(inside, "config", None)
    if not isinstance(config, Mapping):
        raise InputError(f"training needs a UNet or transformer of diffusers, not {type(inside).__name__}")
    for family in FAMILIES:
        if family.has(inside, pipeline):
            return family(inside, pipeline)
    raise InputError(
        f"training is not for this {type(inside).__name__} ({_told(config)}); it is for "
        f"{', '.join(family.label for family in FAMILIES)}"
    )


def _told(config: Mapping[str, Any]) -> str:
    """What tells a model from others of its class."""
    keys = (
        "in_channels",
        "out_channels",
        "addition_embed_type",
        "class_embed_type",
        "num_class_embeds",
        "encoder_hid_dim_type",
    )
    said = [f"{key} {config[key]!r}" for key in keys if config.get(key) is not None]
    return ", ".join(said) or "no channels are known of it"


__all__ = ["FAMILIES", "Family", "family_of"]
