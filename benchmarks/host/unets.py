"""Sampling with a UNet of Stable Diffusion 1.5's structure, so small that it is all dispatch: bare, ours, by hooks."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import hnkernels as hn
from benchmarks.baselines import rewriter
from benchmarks.host.operations import HostProvider
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

_WARM, _STEPS = 3, 7
"""Steps after something was put on the UNet that are not timed, and that are."""

Off = Callable[[], object]
"""Takes off what was put on."""


class Model:
    """The UNet, its input, and what can be put on it; to be run without gradients."""

    def __init__(self) -> None:
        self._unet = _unet()
        self._call = {
            "sample": torch.randn(1, 4, 8, 8),
            "encoder_hidden_states": torch.randn(1, 77, CONFIG["cross_attention_dim"]),
            "return_dict": False,
        }
        relu, affine = (_network(activation) for activation in ("relu", None))
        weights = _weights(self._unet)
        self.ours: dict[str, Callable[[nn.Module], Off]] = {
            "bare": _nothing,
            "kept": partial(_attach, net=relu, targets=["attn2"]),
            "self-attention": partial(_attach, net=relu, targets=["attn1"]),
            "all": partial(_attach, net=relu),
            "fused": partial(_attach, net=affine, fused=True),
            "generated": partial(_attach, net=weights),
        }
        self.others: dict[str, Callable[[nn.Module], Off]] = {
            "bare again": _nothing,
            "kept, hooks": partial(_hook, net=relu, targets=("attn2",)),
            "self-attention, hooks": partial(_hook, net=relu, targets=("attn1",)),
            "all, hooks": partial(_hook, net=relu),
            "fused, hooks": partial(_hook, net=affine),
            "generated, hooks": partial(_hook_weights, weights=weights),
        }

    def calls(self, put: Callable[[nn.Module], Off]) -> int:
        """Calls of functions of a step with this on the UNet."""
        off, step = put(self._unet), self._step()
        step.warm(_WARM)
        calls = step.calls()
        off()
        return calls

    def seconds(self, put: Callable[[nn.Module], Off]) -> list[float]:
        """Of some steps with this on the UNet."""
        off, step = put(self._unet), self._step()
        step.warm(_WARM)
        seconds = [step.seconds() for _ in range(_STEPS)]
        off()
        return seconds

    def _step(self) -> HostProvider:
        timesteps = cycle([torch.tensor(t) for t in _TIMESTEPS])
        return HostProvider(lambda: self._unet(timestep=next(timesteps), **self._call)[0])


def ratios(seconds: float) -> dict[str, float]:
    """What a step takes with everything that can be put on the UNet, as a multiple of what it takes without.

    Medians over many turns, in random order. It is one and the same UNet, for where a copy lies in memory makes more of
    a difference than a percent; and every turn is compared with the steps right before and after it, for how fast a
    processor is changes by more than that within seconds. ``"bare again"``, with nothing on it, shows the noise.
    """
    model = Model()
    puts = {**model.ours, **model.others}
    bare = puts.pop("bare")
    found: dict[str, list[float]] = {name: [] for name in puts}
    started, orders = time.perf_counter(), random.Random(0)
    before = median(model.seconds(bare))
    while time.perf_counter() - started < seconds:
        for name in orders.sample(list(puts), len(puts)):
            between = median(model.seconds(puts[name]))
            after = median(model.seconds(bare))
            found[name].append(2 * between / (before + after))
            before = after
        gc.collect()
    return {name: median(each) for name, each in found.items()}


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


def _nothing(unet: nn.Module) -> Off:
    return lambda: None


def _attach(unet: nn.Module, net: Any, targets: Sequence[str] = ("attn1", "attn2"), fused: bool = False) -> Off:
    if isinstance(net, hn.GeneratedWeights):
        return hn.attach(unet, net).detach
    adapter = hn.attach(unet, net, targets=targets)
    if fused:
        adapter.fuse()
    return adapter.detach


def _hook(unet: nn.Module, net: hn.Hypernetwork, targets: Sequence[str] = ("attn1", "attn2")) -> Off:
    """The web UIs' way: an MLP in front of every ``to_k`` and ``to_v``."""
    handles = []
    for spec in find_attention(unet):
        if spec.kind in targets:
            for stream, mlp in zip(("k", "v"), net[spec.width], strict=True):
                projection = unet.get_submodule(spec.projection(stream))
                handles.append(projection.register_forward_pre_hook(rewriter(mlp)))
    return lambda: [handle.remove() for handle in handles]


def _hook_weights(unet: nn.Module, weights: hn.GeneratedWeights) -> Off:
    """Two einsums after every linear."""
    handles = []
    for layer in weights.layers:
        adding = partial(_adding, *weights.factors(layer.name))
        handles.append(unet.get_submodule(layer.name).register_forward_hook(adding))
    return lambda: [handle.remove() for handle in handles]


def _adding(a: Tensor, b: Tensor, module: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:
    return y + torch.einsum("gtr,gnr->gtn", torch.einsum("gtd,grd->gtr", args[0], a), b)
