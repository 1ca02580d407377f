"""A context hypernetwork on a patched model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hnkernels.adapter.layers import TARGETS, check_reach
from hnkernels.adapter.strength import STREAMS, Place, Strength, resolve
from hnkernels.errors import InputError
from hnkernels.integrations.patcher.context_patch import ROWS, ContextPatch, Streams
from hnkernels.integrations.patcher.spots import Spot, attention_spots
from hnkernels.integrations.patcher.timing import Clock
from hnkernels.network.hypernetwork import Hypernetwork


def apply_context(
    patcher: Any,
    net: Hypernetwork,
    strengths: Sequence[Strength] = (1.0,),
    clock: Clock | None = None,
    rows: str = "all",
) -> tuple[Any, list[ContextPatch]]:
    """A clone of a patched model on which a network acts, after those that act on it already; and its patches.

    The result is ``attach``'s on ``patcher.model.diffusion_model``, whose names and block numbers count.

    Args:
        patcher: a ``ModelPatcher``; it is left as it is.
        net, strengths, clock, rows: as for ``context_patches``.

    Raises:
        AdapterError, ValueError: as ``context_patches``.
    """
    patches = context_patches(patcher.model.diffusion_model, net, strengths, clock, rows)
    clone = patcher.clone()
    for kind, place in (("attn1", clone.set_model_attn1_patch), ("attn2", clone.set_model_attn2_patch)):
        if kind in patches:
            place(patches[kind])
    return clone, list(patches.values())


def context_patches(
    unet: nn.Module,
    net: Hypernetwork,
    strengths: Sequence[Strength] = (1.0,),
    clock: Clock | None = None,
    rows: str = "all",
) -> dict[str, ContextPatch]:
    """What lets a network act on a UNet: a patch for each kind of attention, ``"attn1"`` and ``"attn2"``, if any.

    Args:
        unet: the patcher's ``model.diffusion_model``.
        net: the network. It is put into eval mode.
        strengths: strengths as ``attach`` takes them, without ``PerRow``, which multiply.
        clock: when it acts; ``None`` for throughout.
        rows: of ``ROWS``: the rows of positive prompts alone, say.

    Raises:
        AdapterError: the model has no attention layers of a width that the network has.
        ValueError: an argument is of the wrong kind.
    """
    if not isinstance(net, Hypernetwork):
        raise InputError(
            f"net must be a Hypernetwork, not {type(net).__name__}; a weight hypernetwork acts through the weights "
            "that it generates"
        )
    if rows not in ROWS:
        raise InputError(f"rows must be one of {', '.join(ROWS)}, not {rows!r}")
    layers = attention_spots(unet)
    check_reach(type(unet).__name__, list(layers.values()), net.sizes, TARGETS)
    table = _resolved([Place.of(layer.name, layer.kind) for layer in layers.values()], strengths)
    patches = {}
    for kind in TARGETS:
        acting: dict[Spot, Streams] = {
            spot: streams
            for ((found, spot), layer), streams in zip(layers.items(), table, strict=True)
            if found == kind and layer.width in net and any(streams.values())
        }
        if acting:
            patches[kind] = ContextPatch(net.eval(), acting, clock, rows, shared=kind == "attn2")
    return patches


def _resolved(places: Sequence[Place], strengths: Sequence[Strength]) -> list[dict[str, float]]:
    """The products of the strengths at every place, by stream."""
    factors = [resolve(strength, places) for strength in strengths]
    table = []
    for here in zip(*factors, strict=True):
        streams: dict[str, float] = {}
        for stream in STREAMS:
            values = [resolved.values[stream] for resolved in here]
            if any(isinstance(value, tuple) for value in values):
                raise InputError(
                    "a strength by row is not for patched models; choose positive or negative rows instead"
                )
            streams[stream] = math.prod(value for value in values if not isinstance(value, tuple))
        table.append(streams)
    return table


def strength_table(text: str) -> Mapping[str, Any]:
    """A table of strengths in JSON, as ``attach`` takes it; an empty text is the empty table.

    Raises:
        ValueError: it is not a JSON object.
    """
    try:
        table = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise InputError(
            f'the table of strengths is not JSON: {error}; write it like {{"down": 0.5, "up": {{"block_3": 0.8}}}}'
        ) from None
    if not isinstance(table, dict):
        raise InputError(
            f"the table of strengths must be a JSON object of places and numbers, not {text.strip()[:80]!r}"
        )
    return table
