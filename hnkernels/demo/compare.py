"""The demo's training loop against the same loop run the way the web UIs run it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training import TrainingConfig, read_image_folder, train_hypernetwork
from hnkernels.training.encoding import PipelineData
from hnkernels.training.losses import denoising_loss
from hnkernels.training.step import make_noise_scheduler

_ROUNDS = 8


def compare_with_a1111_way(net: Hypernetwork, pipeline: Any, folder: Path, batch_size: int) -> dict[str, float | None]:
    """Optimiser steps per second of both, interleaved in this process, medians.

    The other side calls the ``reference`` modules in front of every attention layer and leaves the base model
    unfrozen. Both sides see the same batch.

    Returns:
        ``iterations_per_second``, ``iterations_per_second_a1111_way`` and ``speedup``; each ``None`` where the
        ``reference`` folder of the repository is not at hand, as in an installed wheel.
    """
    names = ("iterations_per_second", "iterations_per_second_a1111_way", "speedup")
    try:
        from benchmarks.baseline import patch, reference_net
        from benchmarks.timing import interleave
    except ModuleNotFoundError:
        return dict.fromkeys(names)
    examples = read_image_folder(folder)[:batch_size]
    data = PipelineData(pipeline, examples, TrainingConfig(), net.provenance.name)
    batch = data.batch(range(len(examples)), torch.Generator().manual_seed(0))
    unet, scheduler = pipeline.unet, make_noise_scheduler(pipeline)
    ours = copy.deepcopy(net).train()
    our_optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-5)
    theirs = reference_net(ours)
    their_optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-5)

    def a1111() -> None:
        unet.requires_grad_(True)
        undo = patch(unet, theirs)
        their_optimizer.zero_grad(set_to_none=True)
        denoising_loss(unet, scheduler, batch, None).backward()
        their_optimizer.step()
        undo()
        unet.zero_grad(set_to_none=True)
        unet.requires_grad_(False)

    def hnkernels() -> None:
        train_hypernetwork(ours, unet, batch, our_optimizer, noise_scheduler=scheduler, gradient_clip=1.0)

    comparison = interleave({"a1111": [a1111], "hnkernels": [hnkernels]}, seconds=0, least=_ROUNDS)
    speedup = comparison.median("a1111") / comparison.median("hnkernels")
    figures = (1 / comparison.median("hnkernels"), 1 / comparison.median("a1111"), speedup)
    return {name: round(figure, 3) for name, figure in zip(names, figures, strict=True)}
