"""Affine hypernetworks merged into a model's own weights, exactly and for good.

An affine MLP makes the projection after it another projection, ``W (x + A x + a) = W (I + A) x + W a`` (``folding``).
Stock checkpoints have no bias at ``to_k`` and ``to_v`` to hold the constant ``c = W a``, and need none:

* on K, c adds the same number, ``q·c``, to all logits of a query, and softmax does not see it;
* on V, c is added to every row of the attention's output, because probabilities sum to 1, and after ``to_out`` it is
  the constant ``W_out c``, which joins the bias that is there.

So the merged model has the keys, shapes and dtypes of the old one, and any program that loads the one loads the other.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hnkernels.adapter.layers import (
    TARGETS,
    AttentionLayer,
    accepted_targets,
    check_reach,
    denoiser,
    find_attention,
    find_attention_keys,
)
from hnkernels.errors import InputError
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.ops.folding import chain_map, is_affine
from hnkernels.wording import shown

StateDict = dict[str, Tensor]

ORIGINAL_PREFIX = "model.diffusion_model."
"""What the UNet's keys start with in a single-file checkpoint of the original Stable Diffusion repositories."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class AffineChange(NamedTuple):
    """What a chain of networks adds to one projection: ``W (x + A x + a) = W x + (W A) x + W a``.

    Attributes:
        weight: ``W A`` [n, d], float64, on the CPU.
        constant: ``W a`` [n], likewise.
    """

    weight: Tensor
    constant: Tensor


def merge(
    model: Any,
    nets: Hypernetwork | Sequence[Hypernetwork],
    strengths: float | Sequence[float] = 1.0,
    targets: Sequence[str] = TARGETS,
) -> list[str]:
    """Merges affine hypernetworks into the weights of a model, in place: what ``attach`` would compute, without it.

    The result is computed in float64 and rounded once to the dtype of each weight. Weights that cannot take it leave
    the model untouched: all layers change or none.

    Args:
        model: a diffusers pipeline, or a UNet or other module with attention layers. Where ``to_k`` and ``to_v`` have
            no bias, attention must be softmax attention over one context, as in every Stable Diffusion UNet.
        nets: one network, or several that chain in this order, in eval mode. Multipliers count.
        strengths: one factor on the multipliers of all, or one per network.
        targets: ``"attn1"`` (self-attention), ``"attn2"`` (cross-attention), or both.

    Returns:
        The names of the attention layers that changed.

    Raises:
        ValueError: a network is not affine or not in eval mode, another argument is of the wrong kind, or a layer
            cannot take the change (quantised, wrapped by a LoRA, without a bias after V, values beyond its dtype).
        AdapterError: the model has no attention layers of a width that a network has.
    """
    module = denoiser(model)
    state = dict(module.named_parameters(remove_duplicate=False))
    layers = find_attention(module)
    for layer in layers:
        if getattr(layer.module, "fused_projections", False):
            raise InputError(f"{layer.name} has fused projections; call unfuse_qkv_projections() before merging")
    targets = accepted_targets(targets)
    nets, chosen = _checked(type(module).__name__, layers, nets, strengths, targets)
    changed, entries = _merged(state, layers, nets, chosen, targets)
    with torch.no_grad():
        for key, value in entries.items():
            state[key].copy_(value)
    return changed


def merge_state_dict(
    state: Mapping[str, Tensor],
    nets: Hypernetwork | Sequence[Hypernetwork],
    strengths: float | Sequence[float] = 1.0,
    targets: Sequence[str] = TARGETS,
) -> StateDict:
    """``merge`` for a state dict: of a diffusers UNet, or of a whole single-file checkpoint.

    Where keys start with ``model.diffusion_model.``, the attention layers below that prefix are merged, and those of
    the moving average of the weights if there is one (``model_ema.``).

    Args:
        state: tensors by name; left as it is.
        nets, strengths, targets: see ``merge``.

    Returns:
        A new dict with the same keys, shapes and dtypes; unchanged tensors are those of ``state``.

    Raises:
        ValueError, AdapterError: as ``merge``.
    """
    prefix = ORIGINAL_PREFIX if any(key.startswith(ORIGINAL_PREFIX) for key in state) else ""
    layers = find_attention_keys(state, prefix)
    targets = accepted_targets(targets)
    nets, chosen = _checked("the checkpoint", layers, nets, strengths, targets)
    merged = {**state, **_merged(state, layers, nets, chosen, targets)[1]}
    # The moving average carries the same names with the dots taken out.
    average = {key: f"model_ema.{key.removeprefix('model.').replace('.', '')}" for key in state} if prefix else {}
    averaged = {key: state[other] for key, other in average.items() if other in state}
    if averaged:
        changes = _merged(averaged, find_attention_keys(averaged, prefix), nets, chosen, targets)[1]
        merged.update((average[key], value) for key, value in changes.items())
    return merged


def affine_changes(
    state: Mapping[str, Tensor], layer: AttentionLayer, chains: Mapping[int, Sequence[tuple[Tensor, Tensor] | None]]
) -> dict[str, AffineChange]:
    """What the chains of a layer's width add to its ``to_k`` and ``to_v``.

    Args:
        state: the model's tensors.
        layer: one of its attention layers.
        chains: width → the maps of ``chain_map`` for K and for V; see ``chain_maps``.

    Returns:
        ``"k"`` and ``"v"`` → the change; without the streams where the chain does nothing.

    Raises:
        ValueError: the projection is not a floating-point matrix of the layer's width.
    """
    changes = {}
    for stream, composed in zip("kv", chains.get(layer.width, ()), strict=False):
        if composed is not None:
            weight = _matrix(state, layer.projection(stream), layer.width)
            changes[stream] = AffineChange(*(weight @ part for part in composed))
    return changes


def chain_maps(
    nets: Sequence[Hypernetwork], strengths: Sequence[float]
) -> dict[int, tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]]:
    """Width → the maps of the networks' chains for K and for V, in float64 on the CPU; ``None`` for the identity."""
    maps = {}
    for width in sorted({width for net in nets for width in net}):
        pair = []
        for stream in range(2):
            mlps = [
                (net[width][stream], strength) for net, strength in zip(nets, strengths, strict=True) if width in net
            ]
            composed = chain_map(tuple((mlp, mlp.multiplier_at(strength)) for mlp, strength in mlps))
            pair.append(None if composed is None else (_exact(composed[0]), _exact(composed[1])))
        maps[width] = (pair[0], pair[1])
    return maps


def check_affine(net: Hypernetwork) -> None:
    """Refuses what cannot become part of a weight.

    Raises:
        ValueError: ``net`` is not a hypernetwork, in training mode, or not affine.
    """
    if not isinstance(net, Hypernetwork):
        raise InputError(f"net must be a Hypernetwork, not {type(net).__name__}; load one with load_hypernetwork(path)")
    name = net.provenance.name
    if any(mlp.training for width in net for mlp in net[width]):
        raise InputError(
            f"the hypernetwork {name!r} is in training mode, where strength has no effect; call net.eval()"
        )
    if not all(is_affine(mlp) for width in net for mlp in net[width]):
        settings = [] if net.config.activation in (None, "linear") else [f"activation {net.config.activation!r}"]
        settings += ["layer_norm=True"] if net.config.layer_norm else []
        raise InputError(
            f"only an affine hypernetwork can become part of a model's weights, and {name!r} has "
            f"{' and '.join(settings)}; attach it instead"
        )


def _checked(
    model: str,
    layers: Sequence[AttentionLayer],
    nets: Hypernetwork | Sequence[Hypernetwork],
    strengths: float | Sequence[float],
    targets: Sequence[str],
) -> tuple[tuple[Hypernetwork, ...], tuple[float, ...]]:
    nets = (nets,) if isinstance(nets, torch.nn.Module) else tuple(nets)
    if not nets:
        raise InputError("nets must be one or more hypernetworks; none was given")
    chosen = tuple(strengths) if isinstance(strengths, Sequence) else (strengths,) * len(nets)
    for strength in chosen:
        check_number("strength", strength)
    if len(chosen) != len(nets):
        raise InputError(
            f"{len(chosen)} strengths are given for {len(nets)} hypernetworks; give one for all, or one each"
        )
    for net in nets:
        check_affine(net)
        check_reach(model, layers, net.sizes, targets)
    return nets, chosen


def check_number(name: str, value: object) -> None:
    """Refuses what is not a finite number. Raises ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise InputError(f"{name} must be a finite number, not {shown(value)}")


@torch.no_grad()
def _merged(
    state: Mapping[str, Tensor],
    layers: Sequence[AttentionLayer],
    nets: Sequence[Hypernetwork],
    strengths: Sequence[float],
    targets: Sequence[str],
) -> tuple[list[str], StateDict]:
    """The names of the layers that change, and the tensors that take the place of those in ``state``."""
    chains = chain_maps(nets, strengths)
    changed: list[str] = []
    entries: StateDict = {}
    for layer in layers:
        changes = affine_changes(state, layer, chains) if layer.kind in targets else {}
        for stream, change in changes.items():
            key = f"{layer.projection(stream)}.weight"
            entries[key] = _rounded(key, _exact(state[key]) + change.weight, state[key])
            if change.constant.any():
                entries.update(_with_constant(state, layer, stream, change.constant))
        if changes:
            changed.append(layer.name)
    return changed, entries


def _with_constant(state: Mapping[str, Tensor], layer: AttentionLayer, stream: str, constant: Tensor) -> StateDict:
    """The bias that takes a constant [n] on K or V."""
    key = f"{layer.projection(stream)}.bias"
    if key not in state:
        for part in ("norm_k", "add_k_proj"):  # a constant on K is no longer one, or joins only some of the logits
            if f"{layer.path}.{part}.weight" in state:
                raise InputError(
                    f"{layer.name} has {part} and no bias at {layer.projections[stream]}, so it has no place for the "
                    "constant that the network adds there; attach the network instead"
                )
        if stream == "k":  # the same for all logits of a query
            return {}
        constant = _matrix(state, f"{layer.path}.to_out.0", len(constant)) @ constant
        key = f"{layer.path}.to_out.0.bias"
    if key not in state:
        raise InputError(
            f"{layer.name} has a bias neither at {layer.projections[stream]} nor at to_out.0, so it has no place for "
            "the constant that the network adds to V; attach the network instead"
        )
    return {key: _rounded(key, _exact(state[key]) + constant, state[key])}


def _matrix(state: Mapping[str, Tensor], name: str, width: int) -> Tensor:
    """The weight [n, width] of a linear, in float64 on the CPU."""
    weight = state.get(f"{name}.weight")
    if weight is None:
        raise InputError(f"{name} is not a plain linear layer; remove LoRAs and quantisation before merging")
    if weight.dtype not in _DTYPES or weight.is_meta:
        kind = "without data (offloaded?)" if weight.is_meta else str(weight.dtype)
        raise InputError(f"{name}.weight is {kind}; load the model in float32, float16 or bfloat16, without offloading")
    if weight.ndim != 2 or weight.shape[1] != width:
        raise InputError(f"{name}.weight is {tuple(weight.shape)} and must be a matrix of {width} columns")
    return _exact(weight)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().to(torch.float64)  # some devices have no float64


def _rounded(key: str, exact: Tensor, old: Tensor) -> Tensor:
    new = exact.to(old.dtype)
    if not bool(torch.isfinite(new).all()):
        raise InputError(
            f"{key} would leave the range of {old.dtype}; lower the strength or convert the model to float32"
        )
    return new
