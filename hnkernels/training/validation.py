"""What a network is worth on pictures that it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hnkernels.errors import InputError
from hnkernels.training.data.pipeline_data import PipelineData
from hnkernels.training.data.tensor_data import TensorData
from hnkernels.training.losses import Process, denoising_errors
from hnkernels.training.processes import Processes
from hnkernels.training.progress.measured import Measured
from hnkernels.training.sampler import generator_of
from hnkernels.training.step import adapter_of, autocast, conditioned

if TYPE_CHECKING:
    from torch import nn

_SEED = 0  # of what is drawn: the same in all runs, whatever their seed, so that these can be compared
_DRAWS = 8  # of noise and timestep per picture


def split(count: int, share: float) -> tuple[list[int], list[int]]:
    """Which of as many examples are trained on, and which are held out: the same ones in all runs.

    Args:
        count: of the examples.
        share: of them to hold out, or their number from 1 on; 0 for none.

    Raises:
        ValueError: nothing would be left.
    """
    if not share:
        return list(range(count)), []
    held = int(share) if share >= 1 else max(1, round(share * count))
    if held >= count:
        raise InputError(f"validation_split holds out {held} of {count} pictures; hold out less, or give more pictures")
    order = torch.randperm(count, generator=generator_of(_SEED, "split")).tolist()
    return sorted(order[held:]), sorted(order[:held])


class Validation:
    """The losses of held-out pictures, each at the same noise and the same timesteps every time.

    The timesteps of a picture are spread evenly over those that are trained on. Captions and latents are taken as they
    are, with nothing shuffled, left out or drawn.

    Args:
        process: how the model is called.
        net, unet: the network and the model that it is attached to.
        data: what both lists are of.
        held: the pictures held out.
        trained: pictures that are trained on: as many of these are measured in the same way.
        batch_size, mixed_precision: of the run.
        processes: those among which the pictures are shared out.
    """

    def __init__(
        self,
        process: Process,
        net: nn.Module,
        unet: Any,
        data: TensorData | PipelineData,
        held: Sequence[int],
        trained: Sequence[int],
        batch_size: int,
        mixed_precision: str,
        processes: Processes,
    ):
        self.process, self.net, self.unet, self.data = process, net, unet, data
        self.batch_size, self.mixed_precision, self.processes = batch_size, mixed_precision, processes
        self.held, self.trained = list(held), list(trained)[: len(held)]
        self._base: NDArray[np.float64] | None = None

    def measure(self) -> tuple[Measured, float]:
        """The held-out losses beside the base model's, and the mean loss of as many pictures that are trained on."""
        if self._base is None:
            with self._without_network():
                self._base = self._losses(self.held)
        return Measured(self._losses(self.held), self._base), float(self._losses(self.trained).mean())

    @contextmanager
    def _without_network(self) -> Iterator[None]:
        adapter = adapter_of(self.unet, self.net)
        enabled, adapter.enabled = adapter.enabled, False
        try:
            yield
        finally:
            adapter.enabled = enabled

    @torch.no_grad()
    def _losses(self, pictures: Sequence[int]) -> NDArray[np.float64]:
        """Shape: [pictures, draws]."""
        training = self.net.training
        self.net.eval()
        try:
            own = [self._of_picture(index, place) for place, index in self.processes.share(list(enumerate(pictures)))]
        finally:
            self.net.train(training)
        return np.array([losses for part in self.processes.all_of(own) for losses in part], dtype=np.float64)

    def _of_picture(self, index: int, place: int) -> list[float]:
        """The losses of one picture; what is drawn for it follows from its place."""
        losses: list[float] = []
        draws = list(range(_DRAWS))
        for start in range(0, _DRAWS, self.batch_size):
            chosen = draws[start : start + self.batch_size]
            batch = self.data.plain_batch([index] * len(chosen))
            shape = batch["latents"].shape[1:]
            generators = [generator_of(_SEED, "validation", place, draw) for draw in chosen]
            batch["noise"] = torch.stack([self.process.objective.noise(shape, g) for g in generators])
            batch["timesteps"] = torch.stack([self._timestep(draw) for draw in chosen])
            with ExitStack() as stack:
                stack.enter_context(autocast(self.process.family.place()[0], self.mixed_precision))
                stack.enter_context(conditioned(self.unet, self.net, batch))
                losses += denoising_errors(self.process, batch, None)[0].tolist()
        return losses

    def _timestep(self, draw: int) -> torch.Tensor:
        objective, noising = self.process.objective, self.process.noising
        low, high = objective.min_timestep, objective.max_timestep or noising.timesteps
        return torch.tensor(math.floor(low + (high - low) * (draw + 0.5) / _DRAWS))
