"""The attention projections of well-known UNets, for which no model is needed, and of any model at hand."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from hnkernels.adapter.layers import denoiser
from hnkernels.adapter.projections import Projection, find_projections
from hnkernels.errors import InputError


class _Block(NamedTuple):
    """Transformers of equal width: ``attentions`` modules of ``transformers`` blocks, each one attn1 and one attn2."""

    path: str
    channels: int
    attentions: int
    transformers: int


class _Architecture(NamedTuple):
    text_width: int
    blocks: tuple[_Block, ...]


_SD = (
    _Block("down_blocks.0", 320, 2, 1),
    _Block("down_blocks.1", 640, 2, 1),
    _Block("down_blocks.2", 1280, 2, 1),
    _Block("mid_block", 1280, 1, 1),
    _Block("up_blocks.1", 1280, 3, 1),
    _Block("up_blocks.2", 640, 3, 1),
    _Block("up_blocks.3", 320, 3, 1),
)
_SDXL = (
    _Block("down_blocks.1", 640, 2, 2),
    _Block("down_blocks.2", 1280, 2, 10),
    _Block("mid_block", 1280, 1, 10),
    _Block("up_blocks.0", 1280, 3, 10),
    _Block("up_blocks.1", 640, 3, 2),
)

_ARCHITECTURES = {"sd15": _Architecture(768, _SD), "sd21": _Architecture(1024, _SD), "sdxl": _Architecture(2048, _SDXL)}

ARCHITECTURES = tuple(_ARCHITECTURES)


def projections_of(model: Any) -> list[Projection]:
    """The attention projections of a model.

    Args:
        model: one of ``ARCHITECTURES``, whose names are diffusers'; or a diffusers pipeline or module, as for
            ``attach``; or its projections, under other names. A module may be on the meta device.

    Raises:
        ValueError: there is no such architecture, it is neither pipeline nor module, or it has no attention layers.
        AdapterError: as ``find_attention``.
    """
    if isinstance(model, (list, tuple)) and model and all(isinstance(one, Projection) for one in model):
        return list(model)
    if not isinstance(model, str):
        module = denoiser(model)
        found = find_projections(module)
        if not found:
            raise InputError(f"{type(module).__name__} has no attention layers, so there is nothing to generate")
        return found
    if model not in _ARCHITECTURES:
        near = difflib.get_close_matches(model, ARCHITECTURES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"model is {model!r}, which is not a known architecture; {hint}accepted are {', '.join(ARCHITECTURES)}, a "
            "pipeline or a module"
        )
    text_width, blocks = _ARCHITECTURES[model]
    return [
        Projection(f"{attention}.{path}", attention, kind, projection, block.channels, width)
        for block in blocks
        for i in range(block.attentions)
        for j in range(block.transformers)
        for kind, context in (("attn1", block.channels), ("attn2", text_width))
        for attention in (f"{block.path}.attentions.{i}.transformer_blocks.{j}.{kind}",)
        for projection, path, width in (
            ("q", "to_q", block.channels),
            ("k", "to_k", context),
            ("v", "to_v", context),
            ("out", "to_out.0", block.channels),
        )
    ]
