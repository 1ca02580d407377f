"""What a run will take, and what is wrong with it, before anything starts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import torch

from hnkernels.convert.survey import model_without_weights
from hnkernels.errors import InputError
from hnkernels.home.runs.request import RunRequest
from hnkernels.pipeline import MODEL_DTYPES, check_pipeline
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.contents import FolderContents
from hnkernels.training.data.folder import read_folder
from hnkernels.training.networks import check_fit, new_network
from hnkernels.training.optimizers import optimizer_class
from hnkernels.training.settings import settings
from hnkernels.training.validation import split
from hnkernels.wording import shown

MODEL, DATA, NETWORK, NAME = "model", "data", "network", "name"
"""What a fault is about where it is not a setting of ``TrainingConfig``."""

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
_TRAINED = 16  # bytes per parameter that is trained: itself, its gradient and AdamW's two moments, in fp32


class Fault(InputError):
    """Something that has to be changed before a run can start.

    Args:
        field: what it is about: a setting of ``TrainingConfig``, or ``MODEL``, ``DATA``, ``NETWORK``, ``NAME``.
        message: what is wrong, what is accepted, what to do.
    """

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        parameters: of the network.
        file_bytes: of the network's file.
        memory_bytes: of base model, network, gradient and optimiser together, without what a forward pass keeps for the
            backward pass.
        pictures: that are trained on or held out.
        steps: optimiser steps.
        data: the folder's contents in a sentence.
    """

    parameters: int
    file_bytes: int
    memory_bytes: int
    pictures: int
    steps: int
    data: str


def plan(request: RunRequest) -> Plan:
    """Checks a request as ``hnkernels train`` does before it loads the model, and counts what it will take.

    Raises:
        Fault: something has to be changed.
    """
    config = checked_settings(request.training)
    _about("optimizer", lambda: optimizer_class(config.optimizer))
    if not request.name.strip():
        raise Fault(NAME, "the network needs a name, by which prompts and files will call it")
    if request.model_dtype not in MODEL_DTYPES:
        raise Fault(MODEL, f"model_dtype must be one of {', '.join(MODEL_DTYPES)}, not {shown(request.model_dtype)}")
    model = _about(MODEL, lambda: _model(Path(request.model)))
    contents = _about(DATA, lambda: read(Path(request.data), config))
    own = dict(request.network)
    net = _about(
        NETWORK, lambda: new_network(request.kind, model, config.target_layers, request.name, own, contents.rows)
    )
    _about(NETWORK, lambda: check_fit(net, model, config.target_layers))
    parameters = sum(p.numel() for p in net.parameters())
    base = _about(MODEL, lambda: _parameters_on_disk(Path(request.model))) * _BYTES[request.model_dtype]
    return Plan(
        parameters=parameters,
        file_bytes=4 * parameters,
        memory_bytes=base + _TRAINED * parameters,
        pictures=len(contents.rows),
        steps=_about("validation_split", lambda: _steps(config, contents)),
        data=contents.summary(),
    )


def checked_settings(training: Mapping[str, Any]) -> TrainingConfig:
    """The config.

    Raises:
        Fault: a setting is unknown, out of range, or contradicts another.
    """
    try:
        return TrainingConfig.of(training)
    except ValueError as error:
        said = str(error)
        named = [name for name in settings() if said.startswith(name)]
        raise Fault(max(named, key=len, default=NETWORK), said) from None


def read(data: Path, config: TrainingConfig) -> FolderContents:
    """A data folder as a run with these settings reads it; ``ValueError`` if it cannot be used."""
    return read_folder(data, config.mask_data, config.regularization_data)


def side_of(model: Path) -> int:
    """Side in pixels of the square pictures that a pipeline was made for.

    Raises:
        ValueError: its folder does not say.
    """
    denoiser = model / ("unet" if (model / "unet").is_dir() else "transformer")
    try:
        latent = json.loads((denoiser / "config.json").read_bytes())["sample_size"]
        blocks = json.loads((model / "vae" / "config.json").read_bytes())["block_out_channels"]
        return int(latent) * 2 ** (len(blocks) - 1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{model} does not say how large its pictures are; set the resolution") from error


def _about(field: str, work: Any) -> Any:
    try:
        return work()
    except Fault:
        raise
    except Exception as error:  # ValueError, AdapterError, CheckpointError and OSError, each with its sentence
        raise Fault(field, str(error)) from error


@lru_cache(maxsize=4)
def _model(folder: Path) -> torch.nn.Module:
    check_pipeline(folder)
    return model_without_weights(folder)


def _steps(config: TrainingConfig, contents: FolderContents) -> int:
    own, _ = split(len(contents.rows), config.validation_split)
    used = sum(contents.rows[index].repeats for index in own)
    each = math.ceil(used / (config.batch_size * config.gradient_accumulation_steps))
    steps = config.max_epochs * max(each, 1)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def _parameters_on_disk(model: Path) -> int:
    """Parameters of all parts of a pipeline; of a part that lies there in several variants those of one."""
    total = 0
    for part in model.iterdir():
        by_variant: dict[str, int] = {}
        for file in part.glob("*.safetensors") if part.is_dir() else ():
            variant = file.name.count(".")
            by_variant[str(variant)] = by_variant.get(str(variant), 0) + _parameters(file)
        total += min(by_variant.values(), default=0)
    return total


def _parameters(file: Path) -> int:
    """Numbers in a file, by its header."""
    with safetensors.safe_open(file, framework="pt") as content:
        names = content.keys()
        return sum(math.prod(content.get_slice(name).get_shape()) for name in names)
