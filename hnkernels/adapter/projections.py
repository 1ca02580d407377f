"""Finding every linear that a model's attention layers project with, by structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from hnkernels.adapter.layers import PROTOCOL, AttentionSpec, find_attention
from hnkernels.adapter.strength import PROJECTIONS


@dataclass(frozen=True)
class Projection:
    """One linear of an attention layer.

    Attributes:
        name: its dotted path in the model, such as ``"mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"``.
        attention: the name of the attention layer, as ``find_attention`` gives it.
        kind: the attention layer's.
        projection: what it makes, one of ``PROJECTIONS``.
        out_features, in_features: the shape [n, d] of its weight.
    """

    name: str
    attention: str
    kind: str
    projection: str
    out_features: int
    in_features: int


def find_projections(model: nn.Module) -> list[Projection]:
    """The query, key, value and output linears of all attention layers of ``find_attention``, in the model's order.

    A linear is what has ``in_features`` and ``out_features``: one that a LoRA wraps counts, and so does one without
    data, on the meta device. Joint attention has its text's projections as well, those that exist.

    Raises:
        AdapterError: as ``find_attention``.
    """
    return [
        Projection(f"{layer.path}.{path}", layer.name, layer.kind, projection, linear.out_features, linear.in_features)
        for layer in find_attention(model)
        for projection, path, linear in _linears(layer)
    ]


def _linears(layer: AttentionSpec) -> Iterator[tuple[str, str, Any]]:
    """Projection, path below the attention layer, and the linear."""
    if layer.name != layer.path:
        q, out = "add_q_proj", "to_add_out"
    else:
        q, out = getattr(layer.module, PROTOCOL, ("to_q",))[0], "to_out"
    paths = {"q": q, "k": layer.projections["k"], "v": layer.projections["v"], "out": out}
    for projection in PROJECTIONS:
        path = paths[projection]
        linear = getattr(layer.module, path, None)
        if isinstance(linear, (nn.ModuleList, nn.Sequential)) and len(linear):  # the linear and its dropout
            path, linear = f"{path}.0", linear[0]
        if isinstance(linear, nn.Module) and hasattr(linear, "in_features") and hasattr(linear, "out_features"):
            yield projection, path, linear
