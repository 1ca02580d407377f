"""Affine hypernetworks as patches of a model's weights, which ComfyUI's own nodes save with the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hnkernels.adapter.layers import find_attention_keys
from hnkernels.convert.merging import merge_state_dict
from hnkernels.network.hypernetwork import Hypernetwork

_UNET = "diffusion_model."
_PARTS = ("to_q.weight", "to_k.weight", "to_v.weight", "to_k.bias", "to_v.bias", "to_out.0.weight", "to_out.0.bias")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def merge_into(patcher: Any, net: Hypernetwork, strength: float, targets: Sequence[str]) -> Any:
    """A clone of a patched model with an affine network in its weights, as ``merge`` would put it there.

    What the network does to a weight depends on the weight: LoRAs and other patches that are on the model already are
    part of it, and those that come later are added without the network.

    Raises:
        ValueError, AdapterError: as ``merge``.
    """
    clone = patcher.clone()
    clone.add_patches(
        {f"{_UNET}{key}": (difference,) for key, difference in differences(patcher, net, strength, targets).items()}
    )
    return clone


def differences(patcher: Any, net: Hypernetwork, strength: float, targets: Sequence[str]) -> dict[str, Tensor]:
    """What the network adds to the UNet's weights, fp32 on the CPU, by their keys."""
    before = attention_weights(patcher)
    after = merge_state_dict(before, net, strength, targets)
    return {key: (after[key].float() - value.float()).cpu() for key, value in before.items() if after[key] is not value}


def attention_weights(patcher: Any) -> dict[str, Tensor]:
    """The weights of a model's attention layers with all patches that it has, by their keys in the UNet.

    In the model's dtype where there are none; patched ones, and those of a dtype for storage alone, are in fp32.
    """
    own = patcher.get_key_patches(_UNET)
    shapes = {key.removeprefix(_UNET): _weight(entry[0]) for key, entry in own.items()}
    layers = {layer.path for layer in find_attention_keys(shapes)}
    weights = {}
    for name in shapes:
        layer, _, _ = next((name.partition(f".{part}") for part in _PARTS if name.endswith(f".{part}")), ("", "", ""))
        if layer in layers:
            key = f"{_UNET}{name}"
            weights[name] = _patched(patcher, key, shapes[name], list(own[key])[1:])
    return weights


def _weight(entry: Any) -> Tensor:
    """A weight without its patches: newer versions of ComfyUI give the function that unpacks it beside it."""
    if isinstance(entry, Tensor):
        return entry
    weight, unpack = entry
    return weight if unpack is None else unpack(weight)


@torch.no_grad()
def _patched(patcher: Any, key: str, weight: Tensor, patches: list[Any]) -> Tensor:
    if not patches:
        return weight if weight.dtype in _DTYPES else weight.float()
    if hasattr(patcher, "calculate_weight"):  # ComfyUI until 2024
        return patcher.calculate_weight(patches, weight.to(torch.float32, copy=True), key)
    import comfy.lora  # ComfyUI's own

    return comfy.lora.calculate_weight(patches, weight.to(torch.float32, copy=True), key)
