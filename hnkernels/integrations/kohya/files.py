"""The files that kohya's trainers have written and read: hnkernels' own, with what those trainers say of the run."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from hnkernels.adapter.projections import Projection
from hnkernels.checkpoint import CheckpointError, load_hypernetwork, save_hypernetwork
from hnkernels.checkpoint.training_metadata import kept_of
from hnkernels.errors import InputError
from hnkernels.generator import WeightHypernetwork
from hnkernels.generator.files import NETWORK
from hnkernels.generator.summary import kind_of
from hnkernels.integrations.original_names import diffusers_name
from hnkernels.network.hypernetwork import Hypernetwork

Net = Hypernetwork | WeightHypernetwork
Layer = TypeVar("Layer", bound=Projection)

_EXTENSIONS = {Hypernetwork: (".safetensors", ".pt"), WeightHypernetwork: (".safetensors",)}
_HASH_DIGITS = 10  # of the base model's SHA-256, as A1111 shows it
# The blocks of the original repositories' UNets: every third one changes the resolution.


def check_extension(net: Net, extension: str) -> None:
    """Refuses a format that the network cannot be saved in, before it is trained.

    Raises:
        ValueError: names those that it can.
    """
    accepted = _EXTENSIONS[type(net)]
    if extension not in accepted:
        formats = " or ".join(name.removeprefix(".") for name in accepted)
        raise InputError(
            f"a {type(net).__name__} cannot be saved as {extension.removeprefix('.')}; use --save_model_as {formats}"
        )


def save(net: Net, path: Path, dtype: torch.dtype | None, metadata: Mapping[str, Any] | None) -> None:
    """Saves a copy of a network, so that ``load_hypernetwork`` or ``WeightHypernetwork.load`` reads it.

    Args:
        net: trained on any model; layers of the original repositories' UNets get diffusers' names.
        path: ``.safetensors``, or ``.pt`` for A1111 (always fp32, and without the metadata).
        dtype: of the file's tensors; ``None`` for the network's own.
        metadata: ``ss_…`` and ``modelspec.…`` entries of the trainer; others are left out.

    Raises:
        CheckpointError: as ``save_hypernetwork``.
    """
    check_extension(net, path.suffix.lower())
    saved = copy.deepcopy(net).to("cpu", dtype if path.suffix.lower() == ".safetensors" else None)
    _describe(saved, path, metadata or {})
    if isinstance(saved, WeightHypernetwork):
        rename(saved, diffusers_name)
        saved.save(path)
    else:
        save_hypernetwork(saved, path)


def load(path: Path) -> Net:
    """A network of either kind from its file; the layers have diffusers' names.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    kind = kind_of(path)
    if kind is None:
        return load_hypernetwork(path)
    if kind != NETWORK:
        raise CheckpointError(f"{path}: holds generated weights, which cannot be trained; give a network's file")
    return WeightHypernetwork.load(path)


def structure(net: Net) -> tuple[Any, ...]:
    """What two networks must have in common for one to take the other's weights."""
    if isinstance(net, Hypernetwork):
        config, affine = net.config, net.config.activation in (None, "linear")
        activation = None if affine else (config.activation, config.activate_output)
        return net.sizes, config.layer_structure, activation, config.layer_norm
    parts: Any = (net.encoder, net.generator, net.decoder)
    configs = [{k: v for k, v in part.config.items() if k not in ("init", "rank_dropout")} for part in parts]
    return renamed(net.layers, diffusers_name), configs


def renamed(layers: Sequence[Layer], name_of: Callable[[str], str]) -> list[Layer]:
    """Projections with other names of their attention layers, in the same order."""
    return [
        replace(
            layer,
            attention=name_of(layer.attention),
            name=name_of(layer.attention) + layer.name.removeprefix(layer.attention),
        )
        for layer in layers
    ]


def rename(net: WeightHypernetwork, name_of: Callable[[str], str]) -> None:
    """Gives the attention layers that weights are generated for other names; their order and their weights stay."""
    layers = tuple(renamed(net.layers, name_of))
    parts: Any = (net, net.generator, net.decoder)
    for part in parts:
        part.layers = layers


def _describe(net: Net, path: Path, metadata: Mapping[str, Any]) -> None:
    """Sets the provenance from what the trainer says."""
    notes: list[str] = []
    texts = {key: str(value).encode("utf-8", "replace").decode() for key, value in metadata.items()}
    training = kept_of(texts, notes)
    for note in notes:
        warnings.warn(f"{path.name}: {note}", stacklevel=4)
    architecture = training.get("modelspec.architecture")
    if architecture is not None:  # the trainers know of LoRAs alone
        kind = "weight-hypernetwork" if isinstance(net, WeightHypernetwork) else "hypernetwork"
        training["modelspec.architecture"] = f"{architecture.removesuffix('/lora')}/{kind}"
        training["modelspec.implementation"] = "hnkernels"
    origin = net.provenance
    name = training.get("ss_output_name", "None")
    origin.name = path.stem if name in ("None", "") else name
    origin.step += int(training.get("ss_steps", 0))
    origin.training = {**origin.training, **training}
    if model := training.get("ss_sd_model_name"):
        origin.sd_checkpoint_name = model
        sha256 = training.get("ss_new_sd_model_hash", "")
        origin.sd_checkpoint = sha256[:_HASH_DIGITS] if re.fullmatch(r"[0-9a-f]{64}", sha256) else None
