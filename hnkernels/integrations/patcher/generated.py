"""Weights that a weight hypernetwork generates, for a UNet with the original repositories' names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from hnkernels.adapter.layers import AdapterError
from hnkernels.adapter.projections import find_projections
from hnkernels.adapter.strength import Strength
from hnkernels.generator import GeneratedWeights
from hnkernels.integrations.original_names import diffusers_names


def renamed(weights: GeneratedWeights, unet: nn.Module) -> GeneratedWeights:
    """These weights under the names that the layers have in the UNet, their scales in the factors.

    Weights that were trained on such a UNet have these names already.

    Raises:
        AdapterError: the UNet has no such layer, or one of another shape.
    """
    found = {projection.name: projection for projection in find_projections(unet)}
    if not all(layer.name in found for layer in weights.layers):
        own = diffusers_names(unet, (name for name in found if "transformer_blocks" in name))
        found = {name: found[path] for name, path in own.items()}
    layers, factors = [], {}
    for layer in weights.layers:
        place = found.get(layer.name)
        wanted = layer.out_features, layer.in_features
        if place is None or (place.out_features, place.in_features) != wanted:
            what = "is not there" if place is None else f"is {[place.out_features, place.in_features]} there"
            raise AdapterError(f"the weights are for another base model: {layer.name} {list(wanted)} {what}")
        layers.append(dataclasses.replace(layer, name=place.name, attention=place.attention))
        a, b = weights.factors(layer.name)
        scale = weights.scales(layer.name)
        factors[place.name] = a, b if scale is None else (b * scale[:, None, None]).to(b.dtype)
    return GeneratedWeights.from_factors(layers, factors, weights.index)


def scaled(weights: GeneratedWeights, strength: Strength) -> GeneratedWeights:
    """These weights with a factor on their scales, or with a table of them by place, as ``attach`` takes it.

    Raises:
        ValueError: a key of the table fits no layer, or a value is not a number.
    """
    return weights.scaled(_selectors(strength) if isinstance(strength, Mapping) else cast("float", strength))


def _selectors(table: Mapping[str, Any], inside: str = "") -> dict[str, float]:
    """A table with selectors joined by dots, ``{"up": {"k": 0}}`` as ``{"up.k": 0}``."""
    flat: dict[str, float] = {}
    for key, value in table.items():
        selector = f"{inside}{key}"
        flat.update(_selectors(value, f"{selector}.") if isinstance(value, Mapping) else {selector: value})
    return flat


def kohya_lora(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA of ``to_lora_state_dict`` or ``to_lora`` with kohya's keys, which ComfyUI and the web UIs read.

    Args:
        state: ``unet.<layer>.lora_A.weight`` and ``lora_B.weight``.

    Returns:
        ``lora_unet_<layer>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``, the rank.
    """
    converted = {}
    for key, value in state.items():
        layer, _, side = key.removeprefix("unet.").removesuffix(".weight").rpartition(".")
        name = f"lora_unet_{layer.replace('.', '_')}"
        converted[f"{name}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = value
        if side == "lora_A":
            converted[f"{name}.alpha"] = torch.tensor(float(value.shape[0]))
    return converted
