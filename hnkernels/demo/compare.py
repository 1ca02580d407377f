"""The demo's training loop against the same loop run the way the web UIs run it."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnkernels.adapter.layers import find_attention
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.training import TrainingConfig, read_image_folder, train_hypernetwork
from hnkernels.training.data.pipeline_data import PipelineData
from hnkernels.training.losses import denoising_errors, process_of

_ROUNDS = 8


def compare_with_a1111_way(net: Hypernetwork, pipeline: Any, folder: Path, batch_size: int) -> dict[str, float]:
    """Optimiser steps per second of both, in turn in this process, medians.

    The other side calls plain modules in front of every attention layer and leaves the base model unfrozen. Both sides
    see the same batch.

    Returns:
        ``iterations_per_second``, ``iterations_per_second_a1111_way`` and ``speedup``.
    """
    examples = read_image_folder(folder)[:batch_size]
    process = process_of(pipeline)
    data = PipelineData(process.family, examples, TrainingConfig(), net.provenance.name)
    data.encode()
    batch = data.batch(range(len(examples)), [torch.Generator().manual_seed(i) for i in range(len(examples))])
    unet = pipeline.unet
    ours = copy.deepcopy(net).train()
    our_optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-5)
    theirs = {size: [_Plain(copy.deepcopy(mlp).train()) for mlp in net[size]] for size in net}
    their_optimizer = torch.optim.AdamW([p for pair in theirs.values() for m in pair for p in m.parameters()], lr=1e-5)

    def a1111() -> None:
        unet.requires_grad_(True)
        undo = _patch(unet, theirs)
        their_optimizer.zero_grad(set_to_none=True)
        denoising_errors(process, batch, None)[0].mean().backward()
        their_optimizer.step()
        undo()
        unet.zero_grad(set_to_none=True)
        unet.requires_grad_(False)

    def hnkernels() -> None:
        train_hypernetwork(ours, pipeline, batch, our_optimizer, gradient_clip=1.0)

    seconds: dict[Callable[[], None], list[float]] = {a1111: [], hnkernels: []}
    for turn in range(_ROUNDS + 1):
        for step in (a1111, hnkernels) if turn % 2 else (hnkernels, a1111):
            started = time.perf_counter()
            step()
            seconds[step].append(time.perf_counter() - started)
    first, second = (statistics.median(seconds[step][1:]) for step in (hnkernels, a1111))  # the first round warms up
    figures = {"iterations_per_second": 1 / first, "iterations_per_second_a1111_way": 1 / second}
    return {name: round(figure, 3) for name, figure in {**figures, "speedup": second / first}.items()}


class _Plain(nn.Module):
    """``x + f(x)`` by the sub-layers of an MLP, one after the other, in training mode."""

    def __init__(self, mlp: HypernetworkMLP):
        super().__init__()
        self.linear = mlp.linear

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


def _patch(unet: nn.Module, mlps: Mapping[int, Sequence[nn.Module]]) -> Callable[[], None]:
    """Puts the modules for K and V in front of every ``to_k`` and ``to_v``; returns what takes them out again."""
    handles = []
    for spec in find_attention(unet):
        for name, mlp in zip(("to_k", "to_v"), mlps.get(spec.width, ()), strict=False):
            projection = spec.module.get_submodule(name)
            handles.append(projection.register_forward_pre_hook(lambda _, args, mlp=mlp: mlp(args[0])))

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo
