"""UNets of Stable Diffusion's shapes with random weights, and what they are called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.place import DTYPES, Place

_NOISE = 1 << 20
"""Random numbers that are made; large weights repeat them, since a UNet has billions."""


@dataclass(frozen=True)
class Model:
    """A UNet and the pictures that it is called for.

    Attributes:
        name: of the architecture and the picture's side.
        config: where it differs from diffusers' default, which is Stable Diffusion 1.5's.
        sizes: widths of its contexts.
        latent: height and width of the latents, an eighth of the picture's.
        rows: of a call: 2 with classifier-free guidance.
    """

    name: str
    latent: int
    sizes: tuple[int, ...] = (320, 640, 768, 1280)
    config: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 2

    def __str__(self) -> str:
        return self.name

    @property
    def text_width(self) -> int:
        return self.config.get("cross_attention_dim", 768)

    def build(self, place: Place) -> Any:
        """The UNet, frozen, in eval mode."""
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            unet = UNet2DConditionModel(**{"sample_size": self.latent, "cross_attention_dim": 768, **self.config})
        nn.Module.to(unet, DTYPES[place.dtype]).to_empty(device=place.device)
        noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)).to(place.tensor(0))
        with torch.no_grad():
            for module in unet.modules():
                if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                    module.reset_parameters()
                elif isinstance(module, nn.Linear | nn.Conv2d):
                    _fill(module.weight, noise, module.weight[0].numel() ** -0.5)
                    if module.bias is not None:
                        module.bias.zero_()
        return unet.eval().requires_grad_(False)

    def inputs(self, place: Place) -> dict[str, Any]:
        """One call's arguments: latents [rows, 4, h, w], timesteps, text [rows, 77, width]."""
        call: dict[str, Any] = {
            "sample": place.tensor(self.rows, 4, self.latent, self.latent),
            "timestep": torch.full((self.rows,), 500, device=place.device),
            "encoder_hidden_states": place.tensor(self.rows, 77, self.text_width),
        }
        if self.config.get("addition_embed_type") == "text_time":
            call["added_cond_kwargs"] = {
                "text_embeds": place.tensor(self.rows, 1280),
                "time_ids": torch.ones(self.rows, 6, device=place.device),
            }
        return call


_SD21 = {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True}
_SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_TINY = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
}


def sd15(pixels: int, rows: int = 2) -> Model:
    return Model(f"SD 1.5, {pixels} px", pixels // 8, rows=rows)


def sd21(pixels: int) -> Model:
    return Model(f"SD 2.1, {pixels} px", pixels // 8, (320, 640, 1024, 1280), _SD21)


def sdxl(pixels: int) -> Model:
    return Model(f"SDXL, {pixels} px", pixels // 8, (640, 1280, 2048), _SDXL)


TINY = Model("tiny UNet", 4, (8, 12, 16), _TINY)


def _fill(weight: Tensor, noise: Tensor, scale: float) -> None:
    flat = weight.view(-1)
    for start in range(0, flat.numel(), _NOISE):
        part = flat[start : start + _NOISE]
        torch.mul(noise[: part.numel()], scale, out=part)
