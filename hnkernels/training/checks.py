"""What is checked before a picture is encoded: model, network, data and settings together."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hnkernels.generator import WeightHypernetwork
from hnkernels.generator.encoder import HypernetworkEncoder
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.examples import Example
from hnkernels.training.losses import PREDICTION_TYPES

_BYTES_PER_NUMBER = 4  # networks are trained and saved in fp32
_MEBIBYTE = 2**20


def check_unet(unet: Any, vae: Any = None) -> None:
    """Whether a UNet denoises latents from text alone, as those of Stable Diffusion 1.x and 2.x do.

    Args:
        unet: a diffusers UNet; its weights are not looked at.
        vae: of its pipeline; its ``config`` alone is looked at.

    Raises:
        ValueError: it takes anything else.
    """
    config = getattr(unet, "config", None)
    if not isinstance(config, Mapping):
        raise ValueError(f"training needs a UNet of diffusers, not {type(unet).__name__}")
    if config.get("addition_embed_type") is not None:
        raise ValueError("training is for Stable Diffusion 1.x and 2.x; this UNet wants added conditions (SDXL)")
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        raise ValueError("training is for Stable Diffusion 1.x and 2.x; this UNet wants class labels")
    if config.get("encoder_hid_dim_type") not in (None, "text_proj"):
        raise ValueError(
            f"this UNet wants {config['encoder_hid_dim_type']!r} beside the text; unload the IP-Adapter to train"
        )
    taken, predicted = config.get("in_channels"), config.get("out_channels")
    latent = predicted if vae is None else vae.config["latent_channels"]
    if not taken == latent == predicted:
        raise ValueError(
            f"this UNet takes {taken} channels and predicts {predicted}, where latents have {latent}; training is for "
            "models that denoise latents alone, not for inpainting, depth or upscaling"
        )


def check_scheduler(scheduler: Any) -> None:
    """Raises ``ValueError`` if the noise schedule of a pipeline predicts something that the loss does not know."""
    predicted = scheduler.config.get("prediction_type")
    if predicted not in PREDICTION_TYPES:
        raise ValueError(
            f"{type(scheduler).__name__} has the prediction_type {predicted!r}; accepted are "
            f"{', '.join(PREDICTION_TYPES)}"
        )


def check_previews(config: TrainingConfig, model: Any, net: Hypernetwork | WeightHypernetwork) -> None:
    """Raises ``ValueError`` if the previews that the config asks for cannot be drawn."""
    if not config.preview_every:
        return
    if not hasattr(model, "vae"):
        raise ValueError("previews need a pipeline; set preview_every=0 to train a UNet alone")
    steps = model.scheduler.config.num_train_timesteps
    if config.preview_inference_steps > steps:
        raise ValueError(f"preview_inference_steps is {config.preview_inference_steps}; the model has {steps} at most")
    if isinstance(net, WeightHypernetwork):
        check_conditions(net, config.preview_conditions, model.unet, "preview_conditions")


def check_rows(rows: Sequence[Mapping[str, Any]], unet: Any, config: TrainingConfig) -> None:
    """Raises ``ValueError`` if encoded data is not for this UNet, or cannot be stacked into batches."""
    channels, width = unet.config["in_channels"], _text_width(unet)
    for number, row in enumerate(rows):
        latents, text = row["latents"], row["encoder_hidden_states"]
        if not isinstance(latents, Tensor) or latents.ndim != 3 or len(latents) != channels:
            raise ValueError(f"latents of row {number} must be a tensor [{channels}, h, w], not {_form(latents)}")
        if not isinstance(text, Tensor) or text.ndim != 2 or text.shape[1] != (width or text.shape[1]):
            raise ValueError(
                f"encoder_hidden_states of row {number} must be a tensor [tokens, {width or 'd'}], not {_form(text)}"
            )
        for key, value in row.items():
            if config.batch_size > 1 and _form(value) != _form(rows[0][key]) and isinstance(value, Tensor):
                raise ValueError(
                    f"{key} is {_form(rows[0][key])} in row 0 and {_form(value)} in row {number}; rows of one form "
                    "make a batch, others need batch_size=1"
                )


def check_examples(
    examples: Sequence[Example], pipeline: Any, net: Hypernetwork | WeightHypernetwork, config: TrainingConfig
) -> None:
    """Raises ``ValueError`` if the pictures' resolution or their conditions are not for this pipeline and network."""
    resolution_of(pipeline, config)
    conditions = [example.condition for example in examples]
    if len({type(condition) for condition in conditions}) > 1:
        raise ValueError("all examples need a condition of one kind, or none")
    if isinstance(net, WeightHypernetwork):
        check_conditions(net, [c for c in conditions if c is not None], pipeline.unet, "the data's conditions")


def check_conditions(net: WeightHypernetwork, conditions: Sequence[Any], unet: Any, what: str) -> None:
    """Raises ``ValueError`` if ``net`` cannot be conditioned on these, or, without any, on the text.

    An encoder of one's own is not asked.
    """
    encoder = net.encoder
    if not isinstance(encoder, HypernetworkEncoder):
        return
    width = _text_width(unet)
    try:
        with torch.no_grad():
            if not conditions and width:
                what = "the text, which is the condition where none is given,"
                encoder(torch.zeros(1, 1, width, device=encoder.style_table.device))
            for condition in conditions:
                one = condition[None] if isinstance(condition, Tensor) else condition
                encoder(one.to(encoder.style_table.device) if isinstance(one, Tensor) else one)
    except ValueError as error:
        raise ValueError(f"{what} cannot be used: {error}") from None


def check_space(folder: Path, net: torch.nn.Module, checkpoints: int) -> None:
    """Raises ``ValueError`` if the disk cannot hold as many checkpoints, and the finished network in two formats.

    Args:
        folder: where they are to lie.
        net: the network; its AdamW state is twice as large.
        checkpoints: their number.
    """
    network = _BYTES_PER_NUMBER * sum(p.numel() for p in net.parameters())
    needed, free = network * (3 * checkpoints + 2), shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{checkpoints} checkpoints need {needed // _MEBIBYTE} MiB and {folder} has {free // _MEBIBYTE} MiB left; "
            "make room, or raise checkpoint_every"
        )


def resolution_of(pipeline: Any, config: TrainingConfig) -> int:
    """Side of the training images in pixels.

    Raises:
        ValueError: the VAE cannot take it.
    """
    scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    resolution = config.resolution or pipeline.unet.config.sample_size * scale
    if resolution % scale:
        raise ValueError(f"resolution {resolution} must be a multiple of {scale} for this model")
    return resolution


def _text_width(unet: Any) -> int | None:
    """How wide the text embeddings are that a UNet takes; ``None`` where its layers differ."""
    width = unet.config.get("encoder_hid_dim") or unet.config["cross_attention_dim"]
    return width if isinstance(width, int) else None


def _form(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
