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
from hnkernels.training.families.family import Family, resolution_of
from hnkernels.training.losses import Process

_BYTES_PER_NUMBER = 4  # networks are trained and saved in fp32
_MEBIBYTE = 2**20


def check_model(process: Process, config: TrainingConfig) -> None:
    """Raises ``ValueError`` if a model cannot be trained on with these settings."""
    family = process.family
    vae = getattr(family.pipeline, "vae", None)
    latent = None if vae is None else vae.config.get("latent_channels")
    if latent is not None and latent != family.latent_channels:
        raise ValueError(
            f"the model denoises {family.latent_channels} channels, where the latents of its VAE have {latent}; "
            "training is for models that denoise latents, not for upscaling"
        )
    if config.clip_skip > 1 and "clip_skip" not in family.settings:
        raise ValueError(f"clip_skip is {config.clip_skip}, which is not for {family.label}; leave it at 1")
    process.objective.check(process.noising)


def check_previews(
    config: TrainingConfig, model: Any, width: int | None, net: Hypernetwork | WeightHypernetwork
) -> None:
    """Raises ``ValueError`` if the previews that the config asks for cannot be drawn."""
    if not config.preview_every:
        return
    if not hasattr(model, "vae"):
        raise ValueError("previews need a pipeline; set preview_every=0 to train a UNet alone")
    steps = model.scheduler.config.num_train_timesteps
    if config.preview_inference_steps > steps:
        raise ValueError(f"preview_inference_steps is {config.preview_inference_steps}; the model has {steps} at most")
    if isinstance(net, WeightHypernetwork):
        check_conditions(net, config.preview_conditions, width, "preview_conditions")


def check_rows(rows: Sequence[Mapping[str, Any]], family: Family) -> None:
    """Raises ``ValueError`` if encoded data is not for this family of models."""
    channels, width = family.latent_channels, family.text_width
    needed = ("latents", *family.text_keys, *family.picture_keys)
    for number, row in enumerate(rows):
        if missing := [key for key in needed if key not in row]:
            raise ValueError(f"rows for {family.label} need {', '.join(map(repr, missing))} too, found {sorted(row)}")
        latents, text = row["latents"], row["encoder_hidden_states"]
        if not isinstance(latents, Tensor) or latents.ndim != 3 or len(latents) != channels:
            raise ValueError(f"latents of row {number} must be a tensor [{channels}, h, w], not {_form(latents)}")
        if not isinstance(text, Tensor) or text.ndim != 2 or text.shape[1] != (width or text.shape[1]):
            raise ValueError(
                f"encoder_hidden_states of row {number} must be a tensor [tokens, {width or 'd'}], not {_form(text)}"
            )


def check_examples(
    examples: Sequence[Example], family: Family, net: Hypernetwork | WeightHypernetwork, config: TrainingConfig
) -> None:
    """Raises ``ValueError`` if the pictures' resolution or their conditions are not for this pipeline and network."""
    resolution_of(family, config.resolution)
    conditions = [example.condition for example in examples]
    if len({type(condition) for condition in conditions}) > 1:
        raise ValueError("all examples need a condition of one kind, or none")
    if isinstance(net, WeightHypernetwork):
        check_conditions(net, [c for c in conditions if c is not None], family.text_width, "the data's conditions")


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


def _form(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
