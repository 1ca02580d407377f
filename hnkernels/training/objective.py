"""What is drawn for a step, and how its error is weighed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from hnkernels.errors import InputError
from hnkernels.training.config import TrainingConfig
from hnkernels.training.noising import Noising


@dataclass(frozen=True)
class Objective:
    """The settings of the denoising error; for their meaning see ``TrainingConfig``."""

    loss_type: str = "l2"
    huber_delta: float = 0.1
    snr_gamma: float | None = None
    min_timestep: int = 0
    max_timestep: int | None = None
    timestep_sampling: str = "auto"
    noise_offset: float = 0.0

    @classmethod
    def of(cls, config: TrainingConfig) -> Objective:
        """The settings that a training run has."""
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})

    def check(self, noising: Noising) -> None:
        """Raises ``ValueError`` if the settings are not for this forward process."""
        high = noising.timesteps
        if (self.max_timestep or 0) > high or self.min_timestep >= high:
            given = f"min_timestep is {self.min_timestep} and max_timestep {self.max_timestep}"
            raise InputError(f"{given}; the model has timesteps from 0 to {high}")
        if self.snr_gamma is not None:
            noising.min_snr_weights(torch.zeros(1, dtype=torch.int64), self.snr_gamma)
        if self.timestep_sampling == "shifted" and not hasattr(noising, "shift"):
            raise InputError("timestep_sampling='shifted' is for flow matching; for diffusion use 'uniform'")

    def noise(self, shape: Sequence[int], generator: Generator | None) -> Tensor:
        """Noise for latents of one sample, [C, h, w] in fp32."""
        noise = torch.randn(tuple(shape), generator=generator)
        if self.noise_offset:
            noise += self.noise_offset * torch.randn(shape[0], 1, 1, generator=generator)
        return noise

    def timestep(self, noising: Noising, shape: Sequence[int], generator: Generator | None) -> Tensor:
        """A timestep for latents of one sample of this shape, without dimensions."""
        high = noising.timesteps if self.max_timestep is None else self.max_timestep
        return noising.draw(self.timestep_sampling, self.min_timestep, high, tuple(shape), generator)

    def errors(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The error of every sample, [B], in fp32 at least.

        Args:
            prediction, target: [B, C, h, w].
            mask: [B, 1, h, w], how much each place counts; all alike without it.
        """
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        prediction, target = prediction.to(dtype), target.to(dtype)
        if self.loss_type == "l2":
            errors = F.mse_loss(prediction, target, reduction="none")
        elif self.loss_type == "huber":
            errors = F.huber_loss(prediction, target, reduction="none", delta=self.huber_delta)
        else:
            errors = F.smooth_l1_loss(prediction, target, reduction="none", beta=self.huber_delta)
        if mask is None:
            return errors.flatten(1).mean(1)
        weights = mask.to(errors).expand_as(errors)
        return (errors * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)

    def weights(self, noising: Noising, timesteps: Tensor) -> Tensor | None:
        """How much samples at these timesteps count, [B]; ``None`` for all alike."""
        return None if self.snr_gamma is None else noising.min_snr_weights(timesteps, self.snr_gamma)


DEFAULT = Objective()


def stacked(values: Sequence[Any]) -> Any:
    """Tensors stacked, anything else as a list."""
    return torch.stack(list(values)) if isinstance(values[0], Tensor) else list(values)
