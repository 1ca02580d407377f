"""From a latent to features of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hnkernels.adapter.layers import TARGETS
from hnkernels.adapter.strength import PROJECTIONS, Place
from hnkernels.errors import InputError
from hnkernels.generator.blocks import ResidualMLP, check_count
from hnkernels.generator.targets import TargetLayer

_DEEPEST = 64


class WeightGenerator(nn.Module):
    """Tells every layer what the condition means for it.

    The latent is added to learned embeddings of where a layer is: its depth (which attention layer of the model), its
    block (down, mid or up, and its number there), attn1 or attn2, and q, k, v or out. Residual MLPs follow, shared by
    all layers, and a norm to a root mean square of 1, on which the heads' variances rest.

    Args:
        hidden_dim: H.
        layers: which layers.
        depth: number of residual MLPs.

    Raises:
        ValueError: an option is outside its range.
    """

    def __init__(self, hidden_dim: int, layers: Sequence[TargetLayer], depth: int = 2):
        super().__init__()
        check_count("hidden_dim", hidden_dim, 1)
        check_count("depth", depth, 0, _DEEPEST)
        self.config: dict[str, Any] = {"hidden_dim": hidden_dim, "depth": depth}
        self.layers = tuple(layers)
        places = [Place.of(layer.attention, layer.kind) for layer in self.layers]
        self.depth_table, depths = _table([layer.attention for layer in self.layers], hidden_dim)
        self.block_table, blocks = _table([f"{place.half}.{place.block}" for place in places], hidden_dim)
        self.kind_table = _embedding(len(TARGETS), hidden_dim)
        self.projection_table = _embedding(len(PROJECTIONS), hidden_dim)
        kinds = [TARGETS.index(layer.kind) for layer in self.layers]
        projections = [PROJECTIONS.index(layer.projection) for layer in self.layers]
        ids = torch.tensor([depths, blocks, kinds, projections], device="cpu")  # [4, layers]
        self.ids: Tensor
        self.register_buffer("ids", ids, persistent=False)
        self.blocks = nn.Sequential(*(ResidualMLP(hidden_dim) for _ in range(depth)))
        self.norm = nn.RMSNorm(hidden_dim, elementwise_affine=False)

    def forward(self, latent: Tensor) -> Tensor:
        """[B, H] → features [layers, B, H].

        Raises:
            ValueError: the latent is of another width.
        """
        width = self.config["hidden_dim"]
        if latent.ndim != 2 or latent.shape[1] != width:
            raise InputError(f"latent must be [B, {width}], not {list(latent.shape)}")
        tables = self.depth_table, self.block_table, self.kind_table, self.projection_table
        where = torch.stack([table[ids] for table, ids in zip(tables, self.ids, strict=True)]).sum(0)  # [layers, H]
        return self.norm(self.blocks(latent[None] + where[:, None]))


def _table(labels: Sequence[str], dim: int) -> tuple[nn.Parameter, list[int]]:
    """An embedding of as many rows as there are different labels, and every label's row."""
    rows = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return _embedding(len(rows), dim), [rows[label] for label in labels]


def _embedding(count: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, dim) / 2)  # the four add up to the variance of a latent
