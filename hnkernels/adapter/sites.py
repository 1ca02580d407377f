"""Finding the attention layers of a model, by structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

PROTOCOL = "hypernetwork_projections"
"""Attribute by which an attention class of one's own names its query, key and value linears: ``("wq", "wk", "wv")``."""

_SELF = ("to_q", "to_k", "to_v")
_ADDED = ("add_k_proj", "add_v_proj")  # diffusers' name for the text's own projections in joint attention


class AdapterError(RuntimeError):
    """A hypernetwork cannot be attached, or an attention layer no longer lets it in."""


@dataclass(frozen=True)
class AttentionSpec:
    """One attention layer as found; joint attention is two, the image's and the text's.

    Attributes:
        name: its dotted path in the model; that of joint attention's text projections ends in ``.added``.
        module: the layer.
        kind: ``"attn1"`` (self-attention) or ``"attn2"`` (cross-attention, or the text of joint attention).
        width: last dimension of the context it receives, and so the key into a hypernetwork.
        projections: attribute names of its linears for "q" (where it sees the same context), "k" and "v".
        shared: whether other layers may receive the very same context.
    """

    name: str
    module: nn.Module
    kind: str
    width: int
    projections: dict[str, str]
    shared: bool


def find_attention(model: nn.Module) -> list[AttentionSpec]:
    """All attention layers below ``model``: modules with ``to_q``, ``to_k`` and ``to_v``, whatever their class.

    Joint attention has ``add_k_proj`` and ``add_v_proj`` for the text as well. A class with other names says them in
    an attribute ``hypernetwork_projections``, and in ``is_cross_attention`` whether it receives another context.

    Raises:
        AdapterError: such an attribute names something that is no linear of the module.
    """
    found = []
    for name, module in model.named_modules():
        names = getattr(module, PROTOCOL, _SELF)
        widths = [width for width in (_width(module, attribute) for attribute in names) if width is not None]
        if len(widths) == len(names) == 3:
            q_width, width, _ = widths
            kind = _kind(name, module, q_width, width)
            projections = dict(zip("qkv", names, strict=True))
            if kind == "attn2":  # to_q sees the image there
                del projections["q"]
            found.append(AttentionSpec(name, module, kind, width, projections, shared=kind == "attn2"))
        elif hasattr(module, PROTOCOL):
            raise AdapterError(
                f"{name} ({type(module).__name__}) says {PROTOCOL} = {names!r}; it must name three of its linears, for "
                "query, key and value"
            )
        width_k, width_v = (_width(module, attribute) for attribute in _ADDED)
        if width_k is not None and width_v is not None:
            projections = dict(zip("kv", _ADDED, strict=True))
            found.append(AttentionSpec(f"{name}.added", module, "attn2", width_k, projections, shared=False))
    return found


def _width(module: nn.Module, attribute: Any) -> int | None:
    projection = getattr(module, attribute, None) if isinstance(attribute, str) else None
    if isinstance(projection, nn.Module) and hasattr(projection, "in_features"):
        return int(projection.in_features)  # type: ignore[arg-type]
    return None


def _kind(name: str, module: nn.Module, q_width: int, width: int) -> str:
    # What diffusers says of itself goes before the name: the attn2 of some transformers is a second self-attention.
    cross = getattr(module, "is_cross_attention", None)
    if cross is None:
        cross = width != q_width or name.rsplit(".", 1)[-1] == "attn2"
    return "attn2" if cross else "attn1"
