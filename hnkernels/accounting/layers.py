"""The shapes of the attention layers of a model, and of well-known models that need not be here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnkernels.adapter.projections import find_projections
from hnkernels.adapter.strength import Place
from hnkernels.convert.survey import model_without_weights

TEXT = 77
"""Tokens of a prompt for CLIP."""

_ANY = 4096  # tokens of a layer of which nobody knows


@dataclass(frozen=True)
class LayerShape:
    """The projections of attention layers that are alike.

    Attributes:
        kind: ``"attn1"`` or ``"attn2"``.
        width: of the context.
        out_features: n of ``to_k`` and ``to_v``.
        tokens: of the context of one picture.
        count: how many layers.
    """

    kind: str
    width: int
    out_features: int
    tokens: int
    count: int

    @property
    def label(self) -> str:
        """``"self-attention 320 → 320, 4096 tokens"``."""
        if self.kind == "attn1":
            return f"self-attention {self.width} → {self.out_features}, {self.tokens} tokens"
        return f"cross-attention {self.width} → {self.out_features}"


KNOWN: Mapping[str, tuple[LayerShape, ...]] = {
    "Stable Diffusion 1.5, 512 pixels": (
        LayerShape("attn1", 320, 320, 4096, 5),
        LayerShape("attn1", 640, 640, 1024, 5),
        LayerShape("attn1", 1280, 1280, 256, 5),
        LayerShape("attn1", 1280, 1280, 64, 1),
        LayerShape("attn2", 768, 320, TEXT, 5),
        LayerShape("attn2", 768, 640, TEXT, 5),
        LayerShape("attn2", 768, 1280, TEXT, 6),
    ),
    "Stable Diffusion XL, 1024 pixels": (
        LayerShape("attn1", 640, 640, 4096, 10),
        LayerShape("attn1", 1280, 1280, 1024, 60),
        LayerShape("attn2", 2048, 640, TEXT, 10),
        LayerShape("attn2", 2048, 1280, TEXT, 60),
    ),
}
"""Of models by name, at the size of pictures that they were trained at."""


def layers_of(model: Path) -> tuple[LayerShape, ...]:
    """The layers of a diffusers pipeline, those that are alike once; its weights stay unread.

    Raises:
        ValueError: it is not a pipeline with attention layers.
        AdapterError: as ``find_projections``.
    """
    module: Any = model_without_weights(model)
    config = module.config
    keys = [one for one in find_projections(module) if one.projection == "k"]
    shapes = Counter(
        (one.kind, one.in_features, one.out_features, _tokens(one.attention, one.kind, config)) for one in keys
    )
    return tuple(LayerShape(*shape, count) for shape, count in sorted(shapes.items()))


def _tokens(name: str, kind: str, config: Mapping[str, Any]) -> int:
    """Tokens of a layer's context: of text, or the places of the latent picture at the layer's level of a UNet."""
    if kind != "attn1":
        return TEXT
    side, blocks = config.get("sample_size"), config.get("down_block_types")
    place = Place.of(name, kind)
    if not isinstance(side, int) or not blocks or place.half is None:
        return _ANY
    last = len(blocks) - 1
    level = {"down": place.block, "up": last - (place.block or 0)}.get(place.half, last)
    return math.ceil(side / 2 ** (level or 0)) ** 2
