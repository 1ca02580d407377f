"""The affine part of a hypernetwork as a LoRA, for programs that know LoRAs and no hypernetworks.

An affine network adds ``ΔW = m·W A`` to a projection W (``merging``). The best approximation of rank r is the truncated
singular value decomposition, ``ΔW ≈ (U √S) (√S Vᵀ)`` (Eckart and Young, 1936), whose factors are ``lora_B`` and
``lora_A``. The constant ``m·W a`` that comes with it is not a matrix: on K softmax does not see it, on V it is lost,
unless the LoRA carries biases, which diffusers (with peft) reads and other programs do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hnkernels.adapter.layers import (
    TARGETS,
    accepted_targets,
    check_reach,
    denoiser,
    find_attention,
    find_attention_keys,
)
from hnkernels.convert.merging import (
    ORIGINAL_PREFIX,
    AffineChange,
    affine_changes,
    chain_maps,
    check_affine,
    check_number,
)
from hnkernels.errors import InputError
from hnkernels.network.hypernetwork import Hypernetwork


@dataclass(frozen=True)
class LoraLayer:
    """How well a LoRA does the work of the network at one projection.

    Attributes:
        name: the projection, such as ``"mid_block.attentions.0.transformer_blocks.0.attn1.to_v"``.
        error: ``‖ΔW − B A‖ / ‖ΔW‖`` in the Frobenius norm; 0 where ΔW is 0.
        dropped: what is lost with the constant c, as a share of the whole change: ``‖c‖ / √(‖ΔW‖² + ‖c‖²)``, the
            proportion for contexts of unit variance. 0 on K, where a constant has no effect.
    """

    name: str
    error: float
    dropped: float


@dataclass(frozen=True)
class LoraReport:
    """How well a LoRA does the work of the network.

    Attributes:
        rank: of every factor.
        layers: one per projection.
    """

    rank: int
    layers: tuple[LoraLayer, ...]

    @property
    def worst(self) -> float:
        """The largest error of a layer."""
        return max(layer.error for layer in self.layers)

    @property
    def mean(self) -> float:
        """The mean error of the layers."""
        return sum(layer.error for layer in self.layers) / len(self.layers)

    @property
    def dropped(self) -> float:
        """The largest share of a layer's change that is lost with its constant."""
        return max(layer.dropped for layer in self.layers)


@torch.no_grad()
def to_lora(
    net: Hypernetwork,
    model: Any,
    rank: int,
    strength: float = 1.0,
    targets: Sequence[str] = TARGETS,
    *,
    biases: bool = False,
) -> tuple[dict[str, Tensor], LoraReport]:
    """A LoRA that does to a model what an affine hypernetwork does, as far as its rank allows.

    Args:
        net: an affine hypernetwork in eval mode. Its multipliers count.
        model: the model that the LoRA is for: a diffusers pipeline, its UNet, or the UNet's state dict.
        rank: of the factors, at least 1. A rank that no layer has is lowered to the largest there is, at which the
            LoRA is exact but for the constants. Layers of less are padded with zeros, for readers that know one rank.
        strength: factor on the multipliers; the LoRA then has it at weight 1.
        targets: ``"attn1"`` (self-attention), ``"attn2"`` (cross-attention), or both.
        biases: keep the constants as ``lora_B.bias``. diffusers loads them (with peft), but cannot fuse such a LoRA
            into the model; other programs may refuse it.

    Returns:
        The state dict for ``pipeline.load_lora_weights``, fp32 on the CPU: ``unet.<layer>.to_k.lora_A.weight``
        [rank, d], ``unet.<layer>.to_k.lora_B.weight`` [n, rank], and the same for ``to_v``; and the report, whose
        errors are measured on these rounded factors.

    Raises:
        ValueError: the network is not affine or not in eval mode, an argument is of the wrong kind, strength is 0, or
            the layers have no diffusers names.
        AdapterError: the model has no attention layers of a width that the network has.
    """
    check_affine(net)
    check_number("strength", strength)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"rank must be an integer >= 1, not {rank!r}")
    changes = _changes(net, model, strength, accepted_targets(targets))
    if not changes:
        raise InputError("at this strength the network does nothing, so there is nothing to export; give another")
    rank = min(rank, max(min(change.weight.shape) for change in changes.values()))
    state: dict[str, Tensor] = {}
    layers = []
    for (name, stream), change in changes.items():
        down, up = _factors(change.weight, rank)
        state[f"unet.{name}.lora_A.weight"], state[f"unet.{name}.lora_B.weight"] = down, up
        if biases:
            state[f"unet.{name}.lora_B.bias"] = change.constant.float()
        layers.append(_measured(name, change, up.double() @ down.double(), kept=biases or stream == "k"))
    return state, LoraReport(rank, tuple(layers))


def _changes(
    net: Hypernetwork, model: Any, strength: float, targets: Sequence[str]
) -> dict[tuple[str, str], AffineChange]:
    """Path of a projection, with its stream → what the network adds to it."""
    if isinstance(model, Mapping):
        if any(key.startswith(ORIGINAL_PREFIX) for key in model):
            raise InputError("a LoRA needs diffusers' names of layers, and this state dict has the original ones")
        state, name, layers = model, "the state dict", find_attention_keys(model)
    else:
        module = denoiser(model)
        state, name = dict(module.named_parameters(remove_duplicate=False)), type(module).__name__
        layers = list(find_attention(module))
    check_reach(name, layers, net.sizes, targets)
    chains = chain_maps([net], [strength])
    return {
        (layer.projection(stream), stream): change
        for layer in layers
        if layer.kind in targets
        for stream, change in affine_changes(state, layer, chains).items()
    }


def _factors(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """fp32 factors [rank, d] and [n, rank] of the best approximation of ``delta`` [n, d].

    The singular vectors are the eigenvectors of the smaller Gram matrix, which takes a quarter of an SVD's time. That
    blurs singular values below 1e-8 of the largest, which fp32 factors would not hold either.
    """
    if delta.shape[0] < delta.shape[1]:
        up, down = _factors(delta.T, rank)
        return down.T.contiguous(), up.T.contiguous()
    vectors = torch.linalg.eigh(delta.T @ delta).eigenvectors.flip(1)[:, :rank]  # [d, r], the largest first
    image = delta @ vectors  # U S, [n, r]
    root = image.norm(dim=0).sqrt()
    down = root[:, None] * vectors.T
    up = image / root.clamp_min(torch.finfo(root.dtype).tiny)
    missing = rank - len(root)
    down, up = pad(down, (0, 0, 0, missing)), pad(up, (0, missing))
    return down.float().contiguous(), up.float().contiguous()


def _measured(name: str, change: AffineChange, approximation: Tensor, kept: bool) -> LoraLayer:
    size, constant = change.weight.norm().item(), change.constant.norm().item()
    error = (change.weight - approximation).norm().item() / size if size > 0 else 0.0
    dropped = 0.0 if kept or constant == 0 else constant / (size**2 + constant**2) ** 0.5
    return LoraLayer(name, error, dropped)
