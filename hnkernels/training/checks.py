"""What is checked before a picture is encoded: model, network, data and settings together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from hnkernels.errors import InputError
from hnkernels.generator import WeightHypernetwork
from hnkernels.generator.encoder import HypernetworkEncoder
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.buckets import Buckets
from hnkernels.training.data.contents import some
from hnkernels.training.data.example import Example
from hnkernels.training.data.masks import has_alpha
from hnkernels.training.data.shard_member import ShardMember
from hnkernels.training.data.tables import SOURCE_COLUMNS
from hnkernels.training.families.family import Family, bucket_step_of, resolution_of
from hnkernels.training.losses import Process

_BYTES_PER_NUMBER = 4  # networks are trained and saved in fp32
_MEBIBYTE = 2**20


def check_model(process: Process, config: TrainingConfig) -> None:
    """Raises ``ValueError`` if a model cannot be trained on with these settings."""
    family = process.family
    vae = getattr(family.pipeline, "vae", None)
    latent = None if vae is None else vae.config.get("latent_channels")
    if latent is not None and latent != family.latent_channels:
        raise InputError(
            f"the model denoises {family.latent_channels} channels, where the latents of its VAE have {latent}; "
            "training is for models that denoise latents, not for upscaling"
        )
    if config.clip_skip > 1 and "clip_skip" not in family.settings:
        raise InputError(f"clip_skip is {config.clip_skip}, which is not for {family.label}; leave it at 1")
    layers = getattr(getattr(getattr(family.pipeline, "text_encoder", None), "config", None), "num_hidden_layers", None)
    if layers is not None and config.clip_skip > layers:
        raise InputError(
            f"clip_skip is {config.clip_skip}, and the text encoder has {layers} layers; leave it at 1 or 2"
        )
    process.objective.check(process.noising)
    if config.gradient_checkpointing and family.casts_layerwise():
        raise InputError(
            "gradient_checkpointing does not work with layerwise casting, whose weights have another dtype when they "
            "are used once more; leave out one of the two"
        )


def check_previews(
    config: TrainingConfig, model: Any, width: int | None, net: Hypernetwork | WeightHypernetwork
) -> None:
    """Raises ``ValueError`` if the previews that the config asks for cannot be drawn."""
    if not config.preview_every:
        return
    if not hasattr(model, "vae"):
        raise InputError("previews need a pipeline; set preview_every=0 to train a UNet alone")
    steps = model.scheduler.config.num_train_timesteps
    if config.preview_inference_steps > steps:
        raise InputError(f"preview_inference_steps is {config.preview_inference_steps}; the model has {steps} at most")
    if isinstance(net, WeightHypernetwork):
        check_conditions(net, config.preview_conditions, width, "preview_conditions")


def check_rows(rows: Sequence[Mapping[str, Any]], family: Family) -> None:
    """Raises ``ValueError`` if encoded data is not for this family of models."""
    channels, width = family.latent_channels, family.text_width
    needed = ("latents", *family.text_keys, *family.picture_keys)
    for number, row in enumerate(rows):
        if missing := [key for key in needed if key not in row]:
            raise InputError(f"rows for {family.label} need {', '.join(map(repr, missing))} too, found {sorted(row)}")
        latents, text = row["latents"], row["encoder_hidden_states"]
        if not isinstance(latents, Tensor) or latents.ndim != 3 or len(latents) != channels:
            raise InputError(f"latents of row {number} must be a tensor [{channels}, h, w], not {_form(latents)}")
        if not isinstance(text, Tensor) or text.ndim != 2 or text.shape[1] != (width or text.shape[1]):
            raise InputError(
                f"encoder_hidden_states of row {number} must be a tensor [tokens, {width or 'd'}], not {_form(text)}"
            )


def check_examples(
    examples: Sequence[Example], family: Family, net: Hypernetwork | WeightHypernetwork, config: TrainingConfig
) -> None:
    """Raises ``ValueError`` if pictures or their conditions are not for this pipeline and network.

    Args:
        examples: all there are, those for prior preservation included.
        family, net, config: of the run.
    """
    side = resolution_of(family, config.resolution)
    if config.bucketing:
        Buckets(side, bucket_step_of(family, config.bucket_step), config.bucket_max_aspect)
    without = [str(example.image) for example in examples if example.source is None]
    if "source_latents" in family.picture_keys and without:
        raise InputError(
            f"{family.label} needs the picture to be edited beside each one, and there is none for {some(without)} "
            f"({len(without)} in all); name it in the column {SOURCE_COLUMNS[0]} of metadata.jsonl or .csv, or give "
            "each Example its source"
        )
    if config.mask_data is not None and not config.masked_loss and "mask" not in family.picture_keys:
        raise InputError(
            f"mask_data has no effect on {family.label} without masked_loss; set that, or leave the folder out"
        )
    conditions = [example.condition for example in examples]
    if len({type(condition) for condition in conditions}) > 1:
        raise InputError("all examples need a condition of one kind, or none")
    if isinstance(net, WeightHypernetwork):
        check_conditions(net, [c for c in conditions if c is not None], family.text_width, "the data's conditions")


def check_masks(examples: Sequence[Example], config: TrainingConfig) -> None:
    """Raises ``ValueError`` if ``masked_loss`` has no effect, as there is no mask and no alpha channel at all."""
    masked = config.masked_loss
    if masked and not any(example.mask is not None or has_alpha(example.image) for example in examples):
        raise InputError(
            "masked_loss has no effect, as no picture has an alpha channel and there are no masks; name a folder of "
            "masks as mask_data, or leave masked_loss out"
        )


def check_apart(data: Sequence[Example], prior: Sequence[Example]) -> None:
    """Raises ``ValueError`` if pictures are among those for prior preservation, too."""
    known = {_place(example.image) for example in data}
    if twice := [str(example.image) for example in prior if _place(example.image) in known]:
        raise InputError(
            f"{some(twice)} ({len(twice)} in all) would be trained on and be regularization_data at once; give the "
            "pictures for prior preservation a folder of their own"
        )


def check_conditions(net: WeightHypernetwork, conditions: Sequence[Any], width: int | None, what: str) -> None:
    """Raises ``ValueError`` if ``net`` cannot be conditioned on these, or, without any, on text of this width.

    An encoder of one's own is not asked.
    """
    encoder = net.encoder
    if not isinstance(encoder, HypernetworkEncoder):
        return
    try:
        with torch.no_grad():
            if not conditions and width:
                what = "the text, which is the condition where none is given,"
                encoder(torch.zeros(1, 1, width, device=encoder.style_table.device))
            for condition in conditions:
                one = condition[None] if isinstance(condition, Tensor) else condition
                encoder(one.to(encoder.style_table.device) if isinstance(one, Tensor) else one)
    except ValueError as error:
        raise InputError(f"{what} cannot be used: {error}") from None


def check_space(folder: Path, net: torch.nn.Module, checkpoints: int) -> None:
    """Raises ``ValueError`` if the disk cannot hold as many checkpoints and what else a run keeps of its network.

    That is its start, the best and the finished one, this in two formats and with the optimiser's state for A1111.

    Args:
        folder: where they are to lie.
        net: the network; its AdamW state is twice as large.
        checkpoints: their number.
    """
    network = _BYTES_PER_NUMBER * sum(p.numel() for p in net.parameters())
    needed, free = network * (3 * checkpoints + 6), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{checkpoints} checkpoints need {needed // _MEBIBYTE} MiB and {folder} has {free // _MEBIBYTE} MiB left; "
            "make room, or raise checkpoint_every"
        )


def _place(image: Any) -> Any:
    """Equal for what is the same file, or the same image in memory."""
    if isinstance(image, Image):
        return id(image)
    return image if isinstance(image, ShardMember) else os.path.abspath(image)


def _form(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
