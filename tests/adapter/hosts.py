"""The models that people have, as small as they can be, and the way to put a hypernetwork into each by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hnkernels import Hypernetwork
from tests.models import copied, randomise, reference_of

# Relative, in float64: some dozens of layers, each of which adds a rounding of 1e-16 or so.
FLOAT64_TOLERANCE = 1e-12

STREAMS = {"to_k": 0, "to_v": 1, "add_k_proj": 0, "add_v_proj": 1}
"""The projections that a hypernetwork comes in front of, and which MLP of a pair: that for K or that for V."""


@dataclass
class HostCase:
    """A kind of model.

    Attributes:
        build: makes one with random weights.
        inputs: the arguments of a call.
        sites: how many attention layers of each kind and width it has.
        diffusers: whether its answer is a dataclass unless a tuple is asked for.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    sites: dict[tuple[str, int], int]
    diffusers: bool = True

    @property
    def widths(self) -> list[int]:
        """All context widths."""
        return sorted({width for _, width in self.sites})

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """One of them, frozen, with weights of a size at which none is without effect."""
        model = self.build()
        randomise(model)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):  # as many inputs as there are: outputs near 1
                    module.weight.mul_(2 * module.weight[0].numel() ** -0.5)
        return nn.Module.to(model, dtype).eval().requires_grad_(False)

    def call(self, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        """The arguments in that dtype."""
        return {**cast_to(self.inputs(), dtype), **({"return_dict": False} if self.diffusers else {})}


def cast_to(value: Any, dtype: torch.dtype) -> Any:
    """The floating tensors of a nested structure in that dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: cast_to(item, dtype) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(cast_to(item, dtype) for item in value)
    return value


def run(model: nn.Module, call: dict[str, Any]) -> Tensor:
    """All that the model returns, as one vector."""
    return torch.cat([t.flatten() for t in _tensors(model(**call))])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def by_hand(
    model: nn.Module,
    *nets: Hypernetwork,
    kinds: tuple[str, ...] = ("attn1", "attn2"),
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A copy of the model with the reference's MLPs in front of every K and V projection whose width they have.

    The text projections of joint attention count as cross-attention whatever the layer is called. The MLPs compute in
    ``dtype``, or in that of the projections' weights. They are in the copy's ``by_hand``, under those that they stand
    for.
    """
    twin = copied(model)
    twin.__dict__["by_hand"] = references = {}
    for name, layer in twin.named_modules():
        for projection, stream in STREAMS.items():
            linear = getattr(layer, projection, None)
            if not hasattr(linear, "in_features") or kind_of(name, projection, layer) not in kinds:
                continue
            for net in nets:
                if linear.in_features in net:
                    ours = net[linear.in_features][stream]
                    mlp = references[ours] = references.get(ours) or reference_of(ours, dtype or linear.weight.dtype)
                    linear.register_forward_pre_hook(lambda _, args, mlp=mlp: (mlp(args[0]), *args[1:]))
    return twin


def kind_of(name: str, projection: str, layer: nn.Module) -> str:
    """``attn1`` or ``attn2``, by what the projection takes in, which the layer's name does not always tell; or
    ``temporal``, where no hypernetwork acts."""
    if {"motion_modules", "temporal_transformer_blocks"} & {*name.split(".")}:
        return "temporal"
    if projection.startswith("add_"):
        return "attn2"
    if getattr(layer, "add_k_proj", None) is not None:
        return "attn1"
    if getattr(layer, "is_cross_attention", None) is not None:
        return "attn2" if layer.is_cross_attention else "attn1"
    return "attn2" if name.endswith("attn2") else "attn1"


def _unet(**options) -> nn.Module:
    from diffusers import UNet2DConditionModel

    config = {
        "sample_size": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 12,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**{**config, **options})


def _unet_call(text_width: int = 12, channels: int = 4, **more) -> dict[str, Any]:
    return {
        "sample": torch.randn(2, channels, 4, 4),
        "timestep": torch.tensor(10),
        "encoder_hidden_states": torch.randn(2, 7, text_width),
        **more,
    }


def _sdxl(time_ids: int = 6, **options) -> nn.Module:
    config = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "cross_attention_dim": 20,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * time_ids + 10,
    }
    return _unet(**{**config, **options})


def _sdxl_call(text_width: int = 20, time_ids: int = 6) -> dict[str, Any]:
    pooled = {"text_embeds": torch.randn(2, 10), "time_ids": torch.rand(2, time_ids)}
    return _unet_call(text_width, added_cond_kwargs=pooled)


def _kandinsky2() -> nn.Module:
    return _unet(
        down_block_types=("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
    )


def _controlnet() -> nn.Module:
    from diffusers import ControlNetModel

    return ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        conditioning_embedding_out_channels=(4, 8),
    )


def _residuals() -> dict[str, Any]:
    shapes = [(2, 8, 4, 4), (2, 8, 4, 4), (2, 8, 2, 2), (2, 16, 2, 2)]
    return {
        "down_block_additional_residuals": [torch.randn(shape) for shape in shapes],
        "mid_block_additional_residual": torch.randn(2, 16, 2, 2),
    }


def _motion_unet() -> nn.Module:
    from diffusers import UNetMotionModel

    return UNetMotionModel(
        sample_size=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        cross_attention_dim=12,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )


def _video_unet() -> nn.Module:
    from diffusers import UNetSpatioTemporalConditionModel

    return UNetSpatioTemporalConditionModel(
        sample_size=4,
        in_channels=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=12,
        num_attention_heads=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        num_frames=2,
    )


def _pixart() -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        cross_attention_dim=8,
        caption_channels=12,
        use_additional_conditions=False,
    )


def _hunyuan_dit() -> nn.Module:
    from diffusers import HunyuanDiT2DModel

    return HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        hidden_size=8,
        in_channels=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=4,
        text_len=3,
        text_len_t5=3,
        activation_fn="gelu-approximate",
    )


def _sana() -> nn.Module:
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=12,
        sample_size=4,
        patch_size=1,
    )


def _wan() -> nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=16,
    )


def _sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=8,
        pooled_projection_dim=6,
        pos_embed_max_size=4,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def _sd3_call() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "encoder_hidden_states": torch.randn(2, 7, 12),
        "pooled_projections": torch.randn(2, 6),
        "timestep": torch.tensor([10, 10]),
    }


def _flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=6,
        axes_dims_rope=(4, 2, 2),
    )


def _flux_call() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 6, 4),
        "encoder_hidden_states": torch.randn(2, 7, 12),
        "pooled_projections": torch.randn(2, 6),
        "timestep": torch.tensor([0.5, 0.5]),
        "img_ids": torch.randint(0, 4, (6, 3)).float(),
        "txt_ids": torch.zeros(7, 3),
    }


def _aura_flow() -> nn.Module:
    from diffusers import AuraFlowTransformer2DModel

    return AuraFlowTransformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=16,
    )


class CrossAttention(nn.Module):
    """Attention as in the original repositories: self-attention is cross-attention without a context."""

    def __init__(self, query_dim: int, context_dim: int | None = None, heads: int = 2, dim_head: int = 4):
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.to_q = nn.Linear(query_dim, heads * dim_head, bias=False)
        self.to_k = nn.Linear(context_dim or query_dim, heads * dim_head, bias=False)
        self.to_v = nn.Linear(context_dim or query_dim, heads * dim_head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, query_dim), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        similarity = q @ k.transpose(-1, -2) * self.scale  # [batch, heads, tokens, context tokens]
        if mask is not None:
            similarity = similarity.masked_fill(~mask[:, None, None, :], -torch.finfo(similarity.dtype).max)
        return self.to_out((similarity.softmax(-1) @ v).transpose(1, 2).flatten(-2))


class TransformerBlock(nn.Module):
    """Self-attention and cross-attention, as in the original repositories."""

    def __init__(self, dim: int, context_dim: int):
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(dim), CrossAttention(dim, context_dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        return self.attn2(self.norm2(x), context=context) + x


class OriginalUNet(nn.Module):
    """What of ``ldm``'s UNetModel matters here: its arguments, and transformer blocks in it."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(4, 8)
        self.blocks = nn.ModuleList([TransformerBlock(8, 12), TransformerBlock(8, 12)])
        self.output = nn.Linear(8, 4)

    def forward(self, x: Tensor, timesteps: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        h = self.input(x.flatten(2).transpose(1, 2))  # [batch, pixels, 8]
        for block in self.blocks:
            h = block(h, context)
        return self.output(h).transpose(1, 2).unflatten(2, x.shape[2:])


class DiffusionWrapper(nn.Module):
    """``ldm``'s wrapper of the UNet: the context comes in a list, and is another tensor at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.diffusion_model = OriginalUNet()

    def forward(self, x: Tensor, t: Tensor, c_crossattn: list[Tensor]) -> Tensor:
        return self.diffusion_model(x, t, context=torch.cat(c_crossattn, 1))


def _image_call(text_width: int, **more) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "encoder_hidden_states": torch.randn(2, 7, text_width),
        "timestep": torch.tensor([10, 10]),
        **more,
    }


def _hunyuan_call() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([10.0, 10.0]),
        "encoder_hidden_states": torch.randn(2, 3, 16),
        "text_embedding_mask": torch.ones(2, 3),
        "encoder_hidden_states_t5": torch.randn(2, 3, 16),
        "text_embedding_mask_t5": torch.ones(2, 3),
        "image_meta_size": torch.rand(2, 6),
        "style": torch.tensor([0, 0]),
        "image_rotary_emb": tuple(torch.rand(4, 4) for _ in range(2)),
    }


def _cross(image: dict[int, int], text: tuple[int, int]) -> dict[tuple[str, int], int]:
    """Sites of a UNet: {width: self-attention layers}, (width, cross-attention layers)."""
    return {**{("attn1", width): count for width, count in image.items()}, ("attn2", text[0]): text[1]}


CROSS_ATTENTION = {
    "sd1": HostCase(_unet, _unet_call, _cross({8: 3, 16: 1}, (12, 4))),
    "sd2": HostCase(
        lambda: _unet(use_linear_projection=True, attention_head_dim=(2, 4), cross_attention_dim=20),
        lambda: _unet_call(20),
        _cross({8: 3, 16: 1}, (20, 4)),
    ),
    "sdxl": HostCase(_sdxl, _sdxl_call, _cross({16: 8}, (20, 8))),
    "sdxl refiner": HostCase(
        lambda: _sdxl(
            time_ids=5,
            block_out_channels=(8, 16, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=2,
            attention_head_dim=(2, 4, 4),
            cross_attention_dim=12,
        ),
        lambda: _sdxl_call(12, 5),
        _cross({16: 8}, (12, 8)),
    ),
    "text as wide as the image": HostCase(
        lambda: _unet(cross_attention_dim=16), lambda: _unet_call(16), _cross({8: 3, 16: 1}, (16, 4))
    ),
    "inpainting": HostCase(
        lambda: _unet(in_channels=9), lambda: _unet_call(channels=9), _cross({8: 3, 16: 1}, (12, 4))
    ),
    "instruct-pix2pix": HostCase(
        lambda: _unet(in_channels=8), lambda: _unet_call(channels=8), _cross({8: 3, 16: 1}, (12, 4))
    ),
    "controlnet": HostCase(
        _controlnet, lambda: _unet_call(controlnet_cond=torch.rand(2, 3, 8, 8)), _cross({8: 1, 16: 1}, (12, 2))
    ),
    "unet with a controlnet's residuals": HostCase(
        _unet, lambda: _unet_call(**_residuals()), _cross({8: 3, 16: 1}, (12, 4))
    ),
    "animatediff": HostCase(
        _motion_unet,
        lambda: {**_unet_call(), "sample": torch.randn(1, 4, 2, 4, 4)},  # one film of two pictures
        _cross({8: 3, 16: 1}, (12, 4)),
    ),
    "stable video diffusion": HostCase(
        _video_unet,
        lambda: {
            "sample": torch.randn(1, 2, 8, 4, 4),
            "timestep": torch.tensor(10.0),
            "encoder_hidden_states": torch.randn(1, 1, 12),
            "added_time_ids": torch.rand(1, 3),
        },
        _cross({32: 3, 64: 1}, (12, 4)),
    ),
    "pixart": HostCase(_pixart, lambda: _image_call(12, added_cond_kwargs={}), {("attn1", 8): 2, ("attn2", 8): 2}),
    "hunyuan-dit": HostCase(_hunyuan_dit, _hunyuan_call, {("attn1", 8): 2, ("attn2", 16): 2}),
    "sana": HostCase(_sana, lambda: _image_call(12), {("attn1", 8): 2, ("attn2", 8): 2}),
    "wan": HostCase(
        _wan,
        lambda: {**_image_call(16), "hidden_states": torch.randn(2, 4, 1, 4, 4)},
        {("attn1", 24): 2, ("attn2", 24): 2},
    ),
    "ldm": HostCase(
        OriginalUNet,
        lambda: {"x": torch.randn(2, 4, 2, 2), "timesteps": torch.tensor([10]), "context": torch.randn(2, 7, 12)},
        {("attn1", 8): 2, ("attn2", 12): 2},
        diffusers=False,
    ),
    "ldm in its wrapper": HostCase(
        DiffusionWrapper,
        lambda: {"x": torch.randn(2, 4, 2, 2), "t": torch.tensor([10]), "c_crossattn": [torch.randn(2, 7, 12)]},
        {("attn1", 8): 2, ("attn2", 12): 2},
        diffusers=False,
    ),
}

# Joint attention: to_k and to_v of the picture's stream are self-attention, add_k_proj and add_v_proj of the text's are
# cross-attention; both keyed by width.
JOINT_ATTENTION = {
    # Block 0 has a second attention that sees the image alone; block 1 is the last, whose text goes nowhere further.
    "sd3": HostCase(_sd3, _sd3_call, {("attn1", 8): 3, ("attn2", 8): 2}),
    "flux": HostCase(_flux, _flux_call, {("attn1", 16): 3, ("attn2", 16): 2}),
    "auraflow": HostCase(_aura_flow, lambda: _image_call(12), {("attn1", 8): 2, ("attn2", 8): 1}),
    "kandinsky 2": HostCase(_kandinsky2, _unet_call, {("attn1", 8): 3, ("attn1", 16): 1, ("attn2", 12): 4}),
}
