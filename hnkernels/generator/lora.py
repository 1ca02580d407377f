"""LoRA files as weights, to compare generated ones with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from hnkernels.errors import InputError
from hnkernels.generator.targets import TargetLayer
from hnkernels.generator.weights import GeneratedWeights
from hnkernels.ops.checks import HIGHEST_RANK

_DOWN = re.compile(r"(?:(?:unet|transformer)\.)?(.+?)(?:\.lora_A\.weight|\.lora_A\.\w+\.weight|\.lora\.down\.weight)")


def weights_of_loras(
    layers: Sequence[TargetLayer], states: Sequence[Mapping[str, Tensor]], device: torch.device | str = "cpu"
) -> GeneratedWeights:
    """LoRAs as weights in fp32, one set each; a layer that a LoRA leaves alone has ΔW = 0 there.

    Args:
        layers: what the weights are to be for, ranks aside: those of the result are the LoRAs' largest.
        states: state dicts with diffusers' or PEFT's keys, ``[unet.]<layer>.lora_A.weight`` and ``lora_B.weight``,
            and ``<layer>.alpha`` where there is one.
        device: where the result is to be.

    Raises:
        ValueError: there is none; one has a layer that is none of ``layers``, or another shape there; or there is no
            LoRA in it.
    """
    if not states:
        raise InputError("give at least one LoRA")
    found = [_pairs(state) for state in states]
    shapes = {layer.name: layer.shape[:2] for layer in layers}
    for number, pairs in enumerate(found):
        for name, (a, b) in pairs.items():
            if name not in shapes:
                raise InputError(
                    f"LoRA {number} changes {name}, for which no weights are generated; widen target_layers or "
                    "projections, or leave the layer out of the LoRA"
                )
            if (b.shape[0], a.shape[1]) != shapes[name] or a.shape[0] != b.shape[1]:
                raise InputError(
                    f"LoRA {number} has {list(b.shape)} by {list(a.shape)} at {name}, whose weight is "
                    f"{list(shapes[name])}"
                )
    made, factors = [], {}
    for layer in layers:
        n, d, _ = layer.shape
        none = (torch.zeros(1, d), torch.zeros(n, 1))
        own = [pairs.get(layer.name, none) for pairs in found]
        rank = max(a.shape[0] for a, _ in own)
        if rank > HIGHEST_RANK:
            raise InputError(f"a LoRA has rank {rank} at {layer.name}; weights have {HIGHEST_RANK} at most")
        factors[layer.name] = (
            torch.stack([pad(a, (0, 0, 0, rank - len(a))) for a, _ in own]).to(device),
            torch.stack([pad(b, (0, rank - b.shape[1])) for _, b in own]).to(device),
        )
        made.append(TargetLayer(layer.name, layer.attention, layer.kind, layer.projection, n, d, rank))
    return GeneratedWeights.from_factors(made, factors)


def _pairs(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer name → A [r, d] and B [n, r] in fp32, B with alpha / r in it."""
    pairs = {}
    for key, down in state.items():
        match = _DOWN.fullmatch(key)
        if match is None:
            continue
        up = state.get(key.replace(".lora_A.", ".lora_B.").replace(".lora.down.", ".lora.up."))
        if up is None or down.ndim != 2 or up.ndim != 2:
            raise InputError(f"the LoRA's {key} has no partner, or is not a matrix")
        stem = re.split(r"\.lora_A\.|\.lora\.down\.", key)[0]
        alpha = state.get(f"{stem}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / len(down)
        pairs[match.group(1)] = down.float().cpu(), up.float().cpu() * scale
    if not pairs:
        some = ", ".join(sorted(state)[:2]) or "nothing"
        raise InputError(f"there is no LoRA with keys '<layer>.lora_A.weight' in it, but {some}; convert it to PEFT's")
    return pairs
