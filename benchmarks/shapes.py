"""The one table of shapes: the networks, layers, prompts and UNets that are measured, counted and modelled.

``Layers`` are ``to_k`` and ``to_v`` of attention layers over one context, ``Samples`` linears with low-rank weights of
their own for every sample of a batch, ``UNet`` a whole UNet. ``str`` of a shape is its name in rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import hnkernels as hn
import reference
from benchmarks.rows import DTYPES, Environment

PROMPT = 77
"""Tokens of a prompt."""


@dataclass(frozen=True)
class Network:
    """A ``[1, 2, 1]`` network. Without an activation, A1111's default, it is affine."""

    activation: str | None
    layer_norm: bool = False

    @property
    def name(self) -> str:
        """``"silu + LayerNorm"``."""
        return f"{self.activation or 'affine'}{' + LayerNorm' if self.layer_norm else ''}"

    def references(self, width: int, device: str = "meta") -> list[reference.MLP]:
        """The reference's MLPs for K and V, in fp16."""
        with torch.device(device):
            return [reference.MLP(width, (1, 2, 1), self.activation, self.layer_norm).half() for _ in "kv"]

    def mlps(self, width: int) -> tuple[hn.HypernetworkMLP, hn.HypernetworkMLP]:
        """Those of hnkernels, in fp16, on the meta device."""
        with torch.device("meta"):
            net = hn.Hypernetwork((width,), activation=self.activation, layer_norm=self.layer_norm)
            return net.half()[width]


RELU, AFFINE = Network("relu"), Network(None)
NETWORKS = (RELU, Network("silu"), Network("relu", True), Network("silu", True), AFFINE)


@dataclass(frozen=True)
class Layers:
    """K and V of attention layers over contexts [rows, tokens, width], which networks rewrite first.

    Attributes:
        width, tokens: of a context.
        outs: features of ``to_k`` and ``to_v`` of every layer.
        network: what rewrites the contexts.
        text: they are a text's and take no gradient.
        title: the name, where it is not width, tokens and network.
        rows: contexts in a batch.
        networks: so many of them, one after another.
    """

    width: int
    tokens: int
    outs: tuple[int, ...]
    network: Network = RELU
    text: bool = False
    title: str = ""
    rows: int = 1
    networks: int = 1

    def __str__(self) -> str:
        activation, normed = self.network.activation, self.network.layer_norm
        network = "" if activation == "relu" else f", {activation or 'affine'}"
        return self.title or f"{self.width} x {self.tokens}{network}{', LayerNorm' if normed else ''}"

    def of(self, network: Network) -> Layers:
        """The same layers with another network."""
        return replace(self, network=network)


def image(width: int, tokens: int, network: Network = RELU) -> Layers:
    """A self-attention layer."""
    return Layers(width, tokens, (width,), network)


def text(width: int, n: int, tokens: int = PROMPT) -> Layers:
    """A cross-attention layer."""
    return Layers(width, tokens, (n,), text=True)


SD15 = (image(320, 4096), image(640, 1024), image(1280, 256))
"""Self-attention of SD 1.x and 2.x at 512 px. In the middle of the UNet it is ``SD15_MIDDLE``."""

SD15_MIDDLE = image(1280, 64)
PAIR = image(320, 8192)
"""Two pictures of 512 px at once."""

SDXL = (image(640, 4096), image(1280, 1024))
"""At 1024 px."""

TEXTS = (text(768, 1280), text(1024, 1280), text(2048, 1280))
"""Prompts of SD 1.x, SD 2.x and SDXL, as the widest of their cross-attention layers have them."""

FIRST_TEXTS = (text(768, 320), text(1024, 320), text(2048, 640))
"""As the narrowest have them."""

LAYERS = (SD15[0], PAIR, *SD15[1:], *SDXL, *TEXTS)
"""The single layers that are counted."""

WIDTHS = (320, 640, 768, 1024, 1280, 2048)
"""Of all these contexts."""

SD15_TEXT = Layers(768, PROMPT, (320,) * 5 + (640,) * 5 + (1280,) * 6, text=True, title="16 layers of SD 1.5")
SD21_TEXT = replace(SD15_TEXT, width=1024, title="16 layers of SD 2.1")
SDXL_TEXT = Layers(2048, PROMPT, (640,) * 10 + (1280,) * 60, text=True, title="70 layers of SDXL")
"""All cross-attention layers of a UNet, which see one text."""

TINY = (image(16, 24), text(24, 16, tokens=7), image(16, 24, Network("silu", True)))
TINY_TEXT = Layers(24, 7, (8, 16, 16), text=True, title="3 layers")
"""For the interpreter."""


@dataclass(frozen=True)
class Samples:
    """Linears that read one x [samples, tokens, width], with low-rank weights of their own for every sample.

    Attributes:
        width, tokens: of a sample.
        outs: features of every linear.
        samples, rank: how many samples, and the rank of their weights.
    """

    width: int
    tokens: int
    outs: tuple[int, ...]
    samples: int = 8
    rank: int = 4

    def __str__(self) -> str:
        return f"{self.width} x {self.tokens}, {self.samples} of rank {self.rank}"


SAMPLES = (Samples(320, 1024, (320,)), Samples(768, PROMPT, (640,)))
"""A self-attention and a cross-attention layer of SD 1.x."""

SAMPLES_ON_GPU = (
    Samples(320, 4096, (320,)), Samples(320, 4096, (320,), rank=64), SAMPLES[1], Samples(2048, PROMPT, (1280,))
)  # fmt: skip
TINY_SAMPLES = Samples(24, 9, (16,), samples=3)

Shape = Layers | Samples
"""What is counted and modelled; a whole UNet is measured alone."""

_NOISE = 1 << 20
"""Random numbers that are made; large weights repeat them, since a UNet has billions."""


@dataclass(frozen=True)
class UNet:
    """A UNet and the pictures that it is called for; its weights are random.

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

    def build(self, environment: Environment) -> Any:
        """The UNet, frozen, in eval mode."""
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            unet = UNet2DConditionModel(**{"sample_size": self.latent, "cross_attention_dim": 768, **self.config})
        nn.Module.to(unet, DTYPES[environment.dtype]).to_empty(device=environment.device)
        noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)).to(environment.tensor(0))
        with torch.no_grad():
            for module in unet.modules():
                if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                    module.reset_parameters()
                elif isinstance(module, nn.Linear | nn.Conv2d):
                    _fill(module.weight, noise, module.weight[0].numel() ** -0.5)
                    if module.bias is not None:
                        module.bias.zero_()
        return unet.eval().requires_grad_(False)

    def inputs(self, environment: Environment) -> dict[str, Any]:
        """One call's arguments: latents [rows, 4, h, w], timesteps, text [rows, 77, width]."""
        call: dict[str, Any] = {
            "sample": environment.tensor(self.rows, 4, self.latent, self.latent),
            "timestep": torch.full((self.rows,), 500, device=environment.device),
            "encoder_hidden_states": environment.tensor(self.rows, 77, self.text_width),
        }
        if self.config.get("addition_embed_type") == "text_time":
            call["added_cond_kwargs"] = {
                "text_embeds": environment.tensor(self.rows, 1280),
                "time_ids": torch.ones(self.rows, 6, device=environment.device),
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

_NARROW = {
    "block_out_channels": (4, 8, 8, 8),
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
}


def sd15(pixels: int, rows: int = 2) -> UNet:
    return UNet(f"SD 1.5, {pixels} px", pixels // 8, rows=rows)


def sd21(pixels: int) -> UNet:
    return UNet(f"SD 2.1, {pixels} px", pixels // 8, (320, 640, 1024, 1280), _SD21)


def sdxl(pixels: int) -> UNet:
    return UNet(f"SDXL, {pixels} px", pixels // 8, (640, 1280, 2048), _SDXL)


TINY_UNET = UNet("tiny UNet", 4, (8, 12, 16), _TINY)
NARROW_UNET = UNet("SD 1.5, 4 and 8 channels", 8, (4, 8), _NARROW, rows=1)
"""Of all that Stable Diffusion 1.5's has, but so narrow that it is all dispatch."""


def _fill(weight: Tensor, noise: Tensor, scale: float) -> None:
    flat = weight.view(-1)
    for start in range(0, flat.numel(), _NOISE):
        part = flat[start : start + _NOISE]
        torch.mul(noise[: part.numel()], scale, out=part)
