"""From features of every layer to low-rank weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hnkernels.errors import InputError
from hnkernels.generator.blocks import check_count
from hnkernels.generator.heads import INITS, BasisHead, DenseHead, LoraHead
from hnkernels.generator.targets import TargetLayer, by_shape
from hnkernels.generator.weights import GeneratedWeights
from hnkernels.ops.checks import HIGHEST_RANK

HEADS = ("lora", "basis", "dense")


class HypernetworkDecoder(nn.Module):
    """Turns the features of the layers into their factors. Layers of one shape share a head, which is called once.

    Args:
        hidden_dim: H, width of the features.
        layers: which layers.
        head: ``"lora"`` (factors linear in the features), ``"basis"`` (mixtures of learned factors), or ``"dense"``
            (ΔW itself, for layers with a side of at most 64 and of the full rank).
        bases: number of learned factors per shape, of the basis head.
        init: variance of the generated A, one of ``hyperfan-in``, ``hyperfan-out``, ``hyperfan``; see ``heads``.
        rank_dropout: probability with which, in training mode, one of the r components of ΔW is left out; drawn for
            every layer and sample. The others grow by 1/(1 - p).

    Raises:
        ValueError: an option is outside its range; or the head is dense and the layers are too large for it.
    """

    def __init__(
        self,
        hidden_dim: int,
        layers: Sequence[TargetLayer],
        head: str = "lora",
        bases: int = 16,
        init: str = "hyperfan-in",
        rank_dropout: float = 0.0,
    ):
        super().__init__()
        check_count("hidden_dim", hidden_dim, 1)
        check_count("bases", bases, 1)
        for name, value, accepted in (("head", head, HEADS), ("init", init, INITS)):
            if value not in accepted:
                raise InputError(f"{name} must be one of {', '.join(accepted)}, not {value!r}")
        if isinstance(rank_dropout, bool) or not isinstance(rank_dropout, (int, float)) or not 0 <= rank_dropout < 1:
            raise InputError(f"rank_dropout must be at least 0 and below 1, not {rank_dropout!r}")
        self.config: dict[str, Any] = {
            "hidden_dim": hidden_dim,
            "head": head,
            "bases": bases,
            "init": init,
            "rank_dropout": rank_dropout,
        }
        self.layers = tuple(layers)
        self.rank_dropout = rank_dropout
        if head == "dense":
            _check_dense(hidden_dim, self.layers)
        groups = by_shape(self.layers)
        self.heads = nn.ModuleDict()
        positions = {layer.name: i for i, layer in enumerate(self.layers)}
        for shape, group in groups.items():
            name = "x".join(map(str, shape))
            if head == "lora":
                self.heads[name] = LoraHead(hidden_dim, shape, init)
            elif head == "basis":
                self.heads[name] = BasisHead(hidden_dim, shape, init, bases)
            else:
                self.heads[name] = DenseHead(hidden_dim, shape)
            rows = torch.tensor([positions[layer.name] for layer in group], device="cpu")
            self.register_buffer(f"rows_{name}", rows, persistent=False)

    def forward(self, features: Tensor) -> GeneratedWeights:
        """Features [layers, B, H] → the weights, one set per sample.

        Raises:
            ValueError: the features are not for these layers.
        """
        count, width = len(self.layers), self.config["hidden_dim"]
        if features.ndim != 3 or features.shape[0] != count or features.shape[2] != width:
            raise InputError(f"features must be [{count}, B, {width}], one row per layer, not {list(features.shape)}")
        groups = {}
        for shape, name in zip(by_shape(self.layers), self.heads, strict=True):
            a, b = self.heads[name](features.index_select(0, self.get_buffer(f"rows_{name}")))
            if self.training and self.rank_dropout:
                kept = torch.rand(a.shape[:3], device=a.device) >= self.rank_dropout  # [layers, B, r]
                a = a * (kept.to(a.dtype) / (1 - self.rank_dropout))[..., None]
            groups[shape] = a, b
        return GeneratedWeights(self.layers, groups)


def _check_dense(hidden_dim: int, layers: Sequence[TargetLayer]) -> None:
    large = [layer for layer in layers if min(layer.shape[:2]) > HIGHEST_RANK]
    if large:
        values = sum(layer.out_features * layer.in_features for layer in layers)
        parameters = hidden_dim * sum(n * d for n, d in {layer.shape[:2] for layer in layers})
        raise InputError(
            f"head 'dense' is for layers with a side of at most {HIGHEST_RANK}, and {large[0].name} is "
            f"[{large[0].out_features}, {large[0].in_features}]: {values:,} values would be generated per sample, by "
            f"heads of {parameters:,} parameters ({parameters * 4 / 2**30:,.1f} GiB in fp32); use head='lora'"
        )
    for layer in layers:
        if layer.rank != min(layer.shape[:2]):
            raise InputError(f"head 'dense' needs full rank, {min(layer.shape[:2])} at {layer.name}, not {layer.rank}")
