"""What the files of a trained network say of its training, in the words of other programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from hnkernels.checkpoint.training_metadata import SPECIFICATION
from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training.config import TrainingConfig

ARCHITECTURES = {
    "sd_v1": "stable-diffusion-v1",
    "sd_v2": "stable-diffusion-v2-512",
    "sd_v2_v": "stable-diffusion-v2-768-v",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base",
    "sdxl_refiner_v1-0": "stable-diffusion-xl-v1-refiner",
    "sd3m": "stable-diffusion-3-m",
    "flux1": "flux-1-dev",
}
"""sd-scripts' name of a kind of base model → the standard's; other names are written as they are."""

_HASH_DIGITS = 10
_MOST_TAGS = 1000  # of a set: captions that are sentences are all different, and would fill the file


def describe_training(
    net: Hypernetwork | WeightHypernetwork,
    config: TrainingConfig,
    *,
    steps: int,
    end: int,
    base_version: str,
    model_name: str | None = None,
    model_sha256: str | None = None,
    resolution: int = 512,
    captions: Mapping[str, Iterable[str]] | None = None,
    date: str | None = None,
) -> None:
    """Sets ``net.provenance``: base model and ``training``, before the network is saved; name and step stay.

    What an earlier training said under the same names is replaced, and entries of other names are kept. The same
    arguments give the same files.

    Args:
        net: the network, whose ``provenance.name`` is the title.
        config: the settings.
        steps: optimiser steps done in this run.
        end: those that it was to have.
        base_version: of ``ARCHITECTURES``, or any other name of the kind of base model.
        model_name: of the base model; without it the network's origin is left as it is.
        model_sha256: hex digits of its file, of which A1111 writes the first 10; ``None`` if it is not a single file.
        resolution: side of the training pictures in pixels.
        captions: set of pictures, usually a folder's name → its captions, one per picture, whose parts between commas
            are its tags. The 1000 most frequent of each set are written.
        date: of the training, ISO 8601. Nothing is written of it unless given.
    """
    origin = net.provenance
    if model_name is not None:
        origin.sd_checkpoint = None if model_sha256 is None else model_sha256[:_HASH_DIGITS]
        origin.sd_checkpoint_name = model_name
    sets = {name: list(texts) for name, texts in (captions or {}).items()}
    kind = "weight-hypernetwork" if isinstance(net, WeightHypernetwork) else "hypernetwork"
    last = None if config.max_timestep is None else config.max_timestep - 1
    entries: dict[str, Any] = {
        SPECIFICATION: "1.0.0",
        "modelspec.architecture": f"{ARCHITECTURES.get(base_version, base_version)}/{kind}",
        "modelspec.implementation": "hnkernels",
        "modelspec.title": origin.name,
        "modelspec.date": date,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.timestep_range": None if last is None else f"{config.min_timestep},{last}",
        "ss_base_model_version": base_version,
        "ss_sd_model_name": model_name,
        "ss_new_sd_model_hash": model_sha256,
        "ss_output_name": origin.name,
        "ss_network_module": f"hnkernels.{type(net).__name__}",
        "ss_steps": steps,
        "ss_max_train_steps": end,
        "ss_num_epochs": config.max_epochs,
        "ss_learning_rate": config.learning_rate,
        "ss_lr_scheduler": config.lr_scheduler,
        "ss_lr_warmup_steps": config.lr_warmup_steps,
        "ss_optimizer": config.optimizer,
        "ss_batch_size_per_device": config.batch_size,
        "ss_gradient_accumulation_steps": config.gradient_accumulation_steps,
        "ss_max_grad_norm": config.gradient_clip if config.gradient_clip_mode == "norm" else None,
        "ss_mixed_precision": config.mixed_precision,
        "ss_min_snr_gamma": config.snr_gamma,
        "ss_noise_offset": config.noise_offset,
        "ss_zero_terminal_snr": config.zero_terminal_snr,
        "ss_clip_skip": config.clip_skip,
        "ss_seed": config.seed,
        "ss_resolution": (resolution, resolution),
        "ss_enable_bucket": config.bucketing,
        "ss_flip_aug": config.random_flip,
        "ss_shuffle_caption": config.shuffle_tags,
        "ss_keep_tokens": config.keep_tags,
        "ss_caption_dropout_rate": config.caption_dropout,
        "ss_caption_tag_dropout_rate": config.tag_dropout,
        "ss_num_train_images": sum(map(len, sets.values())) if sets else None,
        "ss_tag_frequency": json.dumps({name: _tags(texts) for name, texts in sets.items()}) if sets else None,
    }
    others = {key: value for key, value in origin.training.items() if key not in entries}
    written = {key: _text(value) for key, value in entries.items() if value is not None}
    origin.training = others | written


def _tags(captions: Iterable[str]) -> dict[str, int]:
    """Tag → number of captions that have it, the most frequent first, those of one number in alphabetical order."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update({tag for part in caption.split(",") if (tag := part.strip())})
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:_MOST_TAGS])


def _text(value: Any) -> str:
    """As safetensors holds it; what UTF-8 cannot hold, as in names of files, becomes a question mark."""
    return str(value).encode("utf-8", "replace").decode()
