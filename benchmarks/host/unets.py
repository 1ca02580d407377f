"""Sampling with a UNet of Stable Diffusion 1.5's structure, so small that it is all dispatch: bare, ours, by hooks."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

import hnkernels as hn
from benchmarks.baseline import rewriter
from benchmarks.host.sides import Side
from hnkernels.adapter.layers import find_attention

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (4, 8, 8, 8),
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
}
"""Where it differs from diffusers' default, which is Stable Diffusion 1.5's: 16 transformer blocks on four levels."""

SIZES = (4, 8)
LAYERS = {"attn1": 16, "attn2": 16}
_TIMESTEPS = range(999, 0, -50)
"""Of the 20 steps of a sampling run; after the last one the next run begins."""

_Prepare = Callable[[nn.Module], object]


def sides(hooks: bool = True) -> dict[str, Side]:
    """A call of the UNet per side, each on a copy of its own; to be run without gradients.

    Args:
        hooks: whether to build what is compared with ours, too, or only ours and the bare UNet.
    """
    unet = _unet()
    relu, affine = (_network(activation) for activation in ("relu", None))
    weights = _weights(unet)
    prepared: dict[str, _Prepare] = {
        "bare": _nothing,
        "kept": partial(hn.attach, net=relu, targets=["attn2"]),
        "self-attention": partial(hn.attach, net=relu, targets=["attn1"]),
        "all": partial(hn.attach, net=relu),
        "fused": partial(_fused, net=affine),
        "generated": partial(hn.attach, net=weights),
    }
    if hooks:
        prepared |= {
            "bare again": _nothing,
            "kept, hooks": partial(_hook, net=relu, targets=("attn2",)),
            "self-attention, hooks": partial(_hook, net=relu, targets=("attn1",)),
            "all, hooks": partial(_hook, net=relu),
            "fused, hooks": partial(_hook, net=affine),
            "generated, hooks": partial(_hook_weights, weights=weights),
        }
    call = {
        "sample": torch.randn(1, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 77, CONFIG["cross_attention_dim"]),
        "return_dict": False,
    }
    made = {}
    for name, prepare in random.sample(list(prepared.items()), len(prepared)):  # none always has the best of the memory
        own = copy.deepcopy(unet)
        prepare(own)
        made[name] = Side(partial(_step, own, call, cycle([torch.tensor(t) for t in _TIMESTEPS])))
    return made


def _step(unet: nn.Module, call: dict[str, Any], timesteps: Any) -> Tensor:
    return unet(timestep=next(timesteps), **call)[0]


def _unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**CONFIG).eval().requires_grad_(False)
    found = [spec.kind for spec in find_attention(unet)]
    assert {kind: found.count(kind) for kind in found} == LAYERS
    return unet


def _network(activation: str | None) -> hn.Hypernetwork:
    return hn.Hypernetwork(SIZES, activation=activation).eval().requires_grad_(False)


def _weights(unet: nn.Module) -> hn.GeneratedWeights:
    """One set of rank 4 for every projection of attention."""
    net = hn.WeightHypernetwork(["attn1", "attn2"], embedding_dim=8, hidden_dim=8, rank=4, model=unet).eval()
    with torch.no_grad():
        return net.generate_weights(torch.randn(1, 8)).detach()


def _nothing(unet: nn.Module) -> None:
    pass


def _fused(unet: nn.Module, net: hn.Hypernetwork) -> None:
    hn.attach(unet, net).fuse()


def _hook(unet: nn.Module, net: hn.Hypernetwork, targets: tuple[str, ...] = ("attn1", "attn2")) -> None:
    """The web UIs' way: an MLP in front of every ``to_k`` and ``to_v``."""
    for spec in find_attention(unet):
        if spec.kind in targets:
            for stream, mlp in zip(("k", "v"), net[spec.width], strict=True):
                unet.get_submodule(spec.projection(stream)).register_forward_pre_hook(rewriter(mlp))


def _hook_weights(unet: nn.Module, weights: hn.GeneratedWeights) -> None:
    """Two einsums behind every linear."""
    for layer in weights.layers:
        a, b = weights.factors(layer.name)
        unet.get_submodule(layer.name).register_forward_hook(partial(_adding, a, b))


def _adding(a: Tensor, b: Tensor, module: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:
    return y + torch.einsum("gtr,gnr->gtn", torch.einsum("gtd,grd->gtr", args[0], a), b)
