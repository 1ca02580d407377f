"""Finding the attention layers of a model, by structure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


class AdapterError(RuntimeError):
    """A hypernetwork cannot be attached, or an attention layer no longer lets it in."""


@dataclass
class AttentionSpec:
    """One attention layer as found.

    Attributes:
        name: its dotted path in the model.
        module: the layer; it has ``to_q``, ``to_k`` and ``to_v``.
        kind: ``"attn1"`` (self-attention) or ``"attn2"`` (cross-attention).
        width: last dimension of the context it receives, and so the key into a hypernetwork.
    """

    name: str
    module: nn.Module
    kind: str
    width: int


def find_attention(model: nn.Module) -> list[AttentionSpec]:
    """All attention layers below ``model``: modules with ``to_q``, ``to_k`` and ``to_v``, whatever their class."""
    found = []
    for name, module in model.named_modules():
        projections = [getattr(module, p, None) for p in ("to_q", "to_k", "to_v")]
        if all(isinstance(p, nn.Module) and hasattr(p, "in_features") for p in projections):
            q_width, width, _ = (int(p.in_features) for p in projections)  # type: ignore[union-attr]
            found.append(AttentionSpec(name, module, _kind(name, module, q_width, width), width))
    return found


def _kind(name: str, module: nn.Module, q_width: int, width: int) -> str:
    last = name.rsplit(".", 1)[-1]
    if last in ("attn1", "attn2"):
        return last
    cross = getattr(module, "is_cross_attention", None)
    return "attn2" if (width != q_width if cross is None else cross) else "attn1"
