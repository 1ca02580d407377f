"""Tiny pipelines of every family with random weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from hnkernels.assets import TINY_SD
from hnkernels.pipeline import load_pipeline

_WORDS = ("<pad>", "</s>", "<unk>", "<bos>", "a", "digit", "one", "two", "letter", "printed", "chi", "en", "User", ",")


def _seeded(build):
    """Weights that are the same every time, none of them zero at the start."""

    @cache
    def built() -> Any:
        torch.manual_seed(0)
        pipeline = build()
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
                for parameter in part.parameters():
                    if not parameter.any():
                        parameter.normal_(std=0.1)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return built


def clip(width: int, projected: bool = False) -> Any:
    """A text encoder of CLIP's kind."""
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=8, bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def clip_tokenizer(pad: str = "<|endoftext|>") -> Any:
    return CLIPTokenizer.from_pretrained(TINY_SD / "tokenizer", pad_token=pad)


def words(**options: Any) -> Any:
    """A tokeniser with a word for a token."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<bos>", **options
    )


def t5() -> Any:
    return T5EncoderModel(
        T5Config(vocab_size=len(_WORDS), d_model=12, d_kv=6, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0)
    )


def vae(channels: int = 4, **options: Any) -> Any:
    return AutoencoderKL(
        latent_channels=channels, block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **options,
    )  # fmt: skip


def unet(**options: Any) -> Any:
    settings = {
        "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
        "cross_attention_dim": 8, "sample_size": 8, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**{**settings, **options})


def _diffusion(**options: Any) -> Any:
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return EulerDiscreteScheduler(**{**settings, **options})


@_seeded
def stable_diffusion():
    return load_pipeline(TINY_SD)


def _with_unet(prediction_type: str = "epsilon", **options: Any) -> Any:
    return StableDiffusionPipeline(
        vae(), clip(8), clip_tokenizer(), unet(**options), _diffusion(prediction_type=prediction_type), None, None,
        requires_safety_checker=False,
    )  # fmt: skip


@_seeded
def velocity():
    return _with_unet("v_prediction")


@_seeded
def inpainting():
    return _with_unet(in_channels=9)


@_seeded
def edits():
    return _with_unet(in_channels=8)


def _xl(pipeline: Any, first: Any, numbers: int, text: int, **options: Any) -> Any:
    net = unet(
        cross_attention_dim=text, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 4 * numbers, **options,
    )  # fmt: skip
    tokenizers = clip_tokenizer() if first else None, clip_tokenizer("!")
    return pipeline(vae(), first, clip(12, True), *tokenizers, net, _diffusion(), add_watermarker=False)


@_seeded
def xl():
    return _xl(StableDiffusionXLPipeline, clip(8), 6, 20)


@_seeded
def refiner():
    pipeline = _xl(StableDiffusionXLImg2ImgPipeline, None, 5, 12)
    pipeline.register_to_config(requires_aesthetics_score=True)
    return pipeline


@_seeded
def inpainting_xl():
    return _xl(StableDiffusionXLPipeline, clip(8), 6, 20, in_channels=9)


def _pixart(told: bool) -> Any:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=24, sample_size=8, patch_size=2, caption_channels=12, use_additional_conditions=told,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    return PixArtSigmaPipeline(words(model_max_length=8), t5(), vae(), transformer, scheduler)


@_seeded
def pixart():
    return _pixart(False)


@_seeded
def pixart_with_sizes():
    return _pixart(True)


@_seeded
def sana():
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=4, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=12,
        sample_size=8,
    )  # fmt: skip
    autoencoder = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock",) * 2,
        decoder_block_types=("ResBlock",) * 2, encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), upsample_block_type="interpolate",
        downsample_block_type="stride_conv", decoder_act_fns="silu", scaling_factor=0.41,
    )  # fmt: skip
    gemma = Gemma2Config(
        vocab_size=len(_WORDS), hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=6,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return SanaPipeline(words(padding_side="right"), Gemma2Model(gemma), autoencoder, transformer, scheduler)


@_seeded
def stable_diffusion_3():
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
        pos_embed_max_size=16,
    )  # fmt: skip
    encoders = clip(8, True), clip_tokenizer(), clip(8, True), clip_tokenizer("!")
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), vae(shift_factor=0.06), *encoders,
        T5EncoderModel(T5Config(vocab_size=len(_WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
        words(model_max_length=16),
    )  # fmt: skip


def _flux(guided: bool) -> Any:
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8), guidance_embeds=guided,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    encoders = clip(8), clip_tokenizer(), t5(), words(model_max_length=16)
    return FluxPipeline(scheduler, vae(shift_factor=0.12), *encoders, transformer)


@_seeded
def flux():
    return _flux(False)


@_seeded
def flux_with_guidance():
    return _flux(True)
