"""Finding the attention layers of a model, by structure."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hnkernels.errors import HNKernelsError, InputError

TARGETS = ("attn1", "attn2")

TEMPORAL = "temporal"
"""The kind of attention between frames, which video models have beside that of the picture. As in A1111 and ComfyUI, no
hypernetwork acts there, whatever its width; generated weights may."""

_BETWEEN_FRAMES = frozenset(
    {"motion_module", "motion_modules", "temp_attentions", "temporal_transformer_blocks", "time_stack"}
    | {"transformer_in", "image_latents_temporal_encoder"}
)
"""What encloses it, in diffusers, AnimateDiff and sgm."""

PROTOCOL = "hypernetwork_projections"
"""Attribute by which an attention class of one's own names its query, key and value linears: ``("wq", "wk", "wv")``."""

_SELF = ("to_q", "to_k", "to_v")
_ADDED = ("add_k_proj", "add_v_proj")  # diffusers' name for the text's own projections in joint attention


class AdapterError(HNKernelsError, RuntimeError):
    """A hypernetwork cannot be attached, or an attention layer no longer lets it in."""


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer as found; joint attention is two, the image's and the text's.

    Attributes:
        name: its dotted path in the model; that of joint attention's text projections ends in ``.added``.
        kind: ``"attn1"`` (self-attention), ``"attn2"`` (cross-attention, or the text of joint attention), or
            ``TEMPORAL``.
        width: last dimension of the context it receives, and so the key into a hypernetwork.
        projections: attribute names of its linears for "q" (where it sees the same context), "k" and "v".
    """

    name: str
    kind: str
    width: int
    projections: dict[str, str]

    @property
    def path(self) -> str:
        """The dotted path of the module that has the projections."""
        return self.name.removesuffix(".added")

    def projection(self, stream: str) -> str:
        """The dotted path of the linear for stream ``"k"`` or ``"v"``."""
        return f"{self.path}.{self.projections[stream]}"


@dataclass(frozen=True)
class AttentionSpec(AttentionLayer):
    """An attention layer of a module.

    Attributes:
        module: the layer.
        shared: whether other layers may receive the very same context.
    """

    module: nn.Module
    shared: bool


def denoiser(model: Any) -> nn.Module:
    """The module with the attention layers: a pipeline's UNet or transformer, or the module itself, unwrapped."""
    inside = () if isinstance(model, nn.Module) else (getattr(model, part, None) for part in ("unet", "transformer"))
    for candidate in (*inside, model):
        if isinstance(candidate, nn.Module):
            return _unwrapped(candidate)
    raise InputError(f"model must be a diffusers pipeline or a torch module, not {type(model).__name__}")


def _unwrapped(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return _unwrapped(module.module)
    compiled = getattr(module, "_orig_mod", None)  # torch.compile's wrapper
    return _unwrapped(compiled) if isinstance(compiled, nn.Module) else module


def find_attention(model: nn.Module) -> list[AttentionSpec]:
    """All attention layers below ``model``: modules with ``to_q``, ``to_k`` and ``to_v``, whatever their class.

    Joint attention has ``add_k_proj`` and ``add_v_proj`` for the text as well. A class with other names says them in
    an attribute ``hypernetwork_projections``, and in ``is_cross_attention`` whether it receives another context.

    Raises:
        AdapterError: such an attribute names something that is not a linear of the module.
    """
    found = []
    for name, module in model.named_modules():
        names = getattr(module, PROTOCOL, _SELF)
        width_k, width_v = (_width(module, attribute) for attribute in _ADDED)
        attributes = names if isinstance(names, (tuple, list)) else ()
        widths = [width for width in (_width(module, attribute) for attribute in attributes) if width is not None]
        if len(widths) == len(attributes) == 3:
            q_width, width, _ = widths
            cross = getattr(module, "is_cross_attention", None)
            if width_k is not None and hasattr(module, "only_cross_attention"):
                # diffusers' Attention with text beside the image: it calls itself cross-attention for that text.
                cross = False
            kind = _kind(name, cross, q_width, width)
            projections = dict(zip("qkv", attributes, strict=True))
            if kind == "attn2":  # to_q sees the image there
                del projections["q"]
            found.append(AttentionSpec(name, kind, width, projections, module, shared=kind == "attn2"))
        elif hasattr(module, PROTOCOL):
            raise AdapterError(
                f"{name} ({type(module).__name__}) says {PROTOCOL} = {names!r}; it must name three of its linears, for "
                "query, key and value"
            )
        if width_k is not None and width_v is not None:
            projections = dict(zip("kv", _ADDED, strict=True))
            found.append(AttentionSpec(f"{name}.added", "attn2", width_k, projections, module, shared=False))
    return found


def _width(module: nn.Module, attribute: Any) -> int | None:
    projection = getattr(module, attribute, None) if isinstance(attribute, str) else None
    if isinstance(projection, nn.Module) and hasattr(projection, "in_features"):
        return int(projection.in_features)  # type: ignore[arg-type]
    return None


def find_attention_keys(state: Mapping[str, Tensor], prefix: str = "") -> list[AttentionLayer]:
    """All attention layers of a state dict whose keys start with ``prefix``, as ``find_attention`` finds them.

    Without modules, self-attention is told from cross-attention by the name and by the widths alone.
    """
    found = []
    for key in state:
        name = key.removesuffix(".to_k.weight")
        if name == key or not key.startswith(prefix):
            continue
        widths = [_columns(state, f"{name}.{projection}.weight") for projection in _SELF]
        q_width, width, _ = widths
        if q_width is None or width is None or None in widths:
            continue
        kind = _kind(name, None, q_width, width)
        found.append(AttentionLayer(name, kind, width, dict(zip("qkv", _SELF, strict=True))))
        width_k, width_v = (_columns(state, f"{name}.{projection}.weight") for projection in _ADDED)
        if width_k is not None and width_v is not None:
            projections = dict(zip("kv", _ADDED, strict=True))
            found.append(AttentionLayer(f"{name}.added", "attn2", width_k, projections))
    return found


def accepted_targets(targets: str | Sequence[str]) -> tuple[str, ...]:
    """``targets``, one or several of ``TARGETS``, as a tuple.

    Raises:
        ValueError: there are none, or others.
    """
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    if not targets or not set(targets) <= set(TARGETS):
        raise InputError(f"targets must be some of {', '.join(TARGETS)}, not {targets!r}")
    return targets


def check_reach(model: str, layers: Sequence[AttentionLayer], widths: Collection[int], targets: Sequence[str]) -> None:
    """Refuses a hypernetwork that no attention layer has a context for, and warns of one that fits in part.

    Args:
        model: what has the layers, for the message.
        layers: the model's attention layers.
        widths: the hypernetwork's.
        targets: the kinds of attention it is to act on.

    Raises:
        AdapterError: it would act nowhere.
    """
    there = {layer.width for layer in layers if layer.kind in targets}
    if not there & set(widths):
        raise AdapterError(
            f"{model} has attention contexts of the widths {sorted(there) or 'none'} in {', '.join(targets)}, "
            f"and the hypernetwork is for {sorted(widths)}: it is for another model"
        )
    nowhere = set(widths) - {layer.width for layer in layers if layer.kind != TEMPORAL}
    if nowhere:
        acts = _listed(layer for layer in layers if layer.kind in targets and layer.width in widths)
        rest = _listed(layer for layer in layers if layer.kind in targets and layer.width not in widths)
        warnings.warn(
            f"the hypernetwork is for the widths {sorted(widths)}, of which {model} has none of {sorted(nowhere)}; it "
            f"may be for another base model. It acts on {acts}" + (f", and not on {rest}" if rest else ""),
            stacklevel=3,
        )


def _listed(layers: Iterable[AttentionLayer]) -> str:
    """``attn1 of width 48 (7 layers), …``"""
    counts = Counter((layer.kind, layer.width) for layer in layers)
    return ", ".join(f"{kind} of width {width} ({count} layers)" for (kind, width), count in sorted(counts.items()))


def _columns(state: Mapping[str, Tensor], key: str) -> int | None:
    matrix = state.get(key)
    return None if matrix is None or matrix.ndim != 2 else matrix.shape[1]


def _kind(name: str, cross: bool | None, q_width: int, width: int) -> str:
    if not _BETWEEN_FRAMES.isdisjoint(name.split(".")):
        return TEMPORAL
    # What diffusers says of itself goes before the name: the attn2 of some transformers is a second self-attention.
    if cross is None:
        cross = width != q_width or name.rsplit(".", 1)[-1] == "attn2"
    return "attn2" if cross else "attn1"
