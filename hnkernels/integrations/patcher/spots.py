"""Attention layers as patches see them: a block of the UNet and a transformer in it, instead of a dotted path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from hnkernels.adapter.layers import TARGETS, AdapterError, AttentionLayer, find_attention

_HALVES = {"input_blocks": "input", "middle_block": "middle", "output_blocks": "output"}
_PATH = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)\..*?transformer_blocks\.(\d+)\.attn\d")


class Spot(NamedTuple):
    """One transformer block of a UNet.

    Attributes:
        half: ``"input"``, ``"middle"`` or ``"output"``.
        block: number of the block in that half; 0 in the middle.
        transformer: number of the transformer block in it.
    """

    half: str
    block: int
    transformer: int

    @staticmethod
    def told(options: Mapping[str, Any]) -> Spot | None:
        """That of the ``extra_options`` of a patch; ``None`` where they name no block, as in a ControlNet."""
        block = options.get("block")
        return None if block is None else Spot(block[0], block[1], options.get("block_index", 0))


def call_of(options: Mapping[str, Any]) -> object:
    """What all patches are told in one call of the UNet and in no other: the list that it makes of its input's shape.

    ``None`` where there is no such list; then every patch stands alone.
    """
    return options.get("original_shape")


def attention_spots(unet: nn.Module) -> dict[tuple[str, Spot], AttentionLayer]:
    """The attention layers that patches reach, by kind and spot.

    Args:
        unet: the patcher's ``model.diffusion_model``.

    Raises:
        AdapterError: there is none: the model is not a UNet of the original Stable Diffusion repositories.
    """
    found: dict[tuple[str, Spot], AttentionLayer] = {}
    for layer in find_attention(unet):
        match = _PATH.match(layer.name)
        if match and layer.kind in TARGETS:
            half = _HALVES[match[1]]
            found[layer.kind, Spot(half, 0 if half == "middle" else int(match[2]), int(match[3]))] = layer
    if not found:
        raise AdapterError(
            f"{type(unet).__name__} has no attention layers that attention patches reach; hypernetworks act on the "
            "UNets of Stable Diffusion 1, 2 and XL"
        )
    return found
