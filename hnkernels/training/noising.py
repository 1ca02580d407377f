"""How noise is added to latents, and what is to be predicted of it: diffusion and flow matching."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from hnkernels.errors import InputError

TIMESTEPS = 1000

_TARGETS: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda scheduler, latents, noise, timesteps: noise,
    "v_prediction": lambda scheduler, latents, noise, timesteps: scheduler.get_velocity(latents, noise, timesteps),
    "sample": lambda scheduler, latents, noise, timesteps: latents,
}
PREDICTION_TYPES = tuple(_TARGETS)
"""What a diffusion model may predict: the noise, the velocity or the latents."""


class Noising(ABC):
    """The forward process of training.

    Attributes:
        timesteps: how many there are; those of flow matching need not be integers.
    """

    timesteps: int

    @abstractmethod
    def draw(self, sampling: str, low: int, high: int, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
        """A timestep, without dimensions.

        Args:
            sampling: see ``TrainingConfig.timestep_sampling``.
            low, high: it lies in [low, high).
            shape: of one sample's latents, [C, h, w], which the shift of some models depends on.
            generator: a CPU generator.
        """

    @abstractmethod
    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents with their noise. Shape: [B, C, h, w] each, timesteps [B]."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model is to predict, [B, C, h, w]."""

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        """α²/σ² at these timesteps, [B].

        Raises:
            ValueError: the weighting by it is not defined for this process.
        """
        raise InputError("snr_gamma is for diffusion models; for flow matching leave it out")

    def min_snr_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Min-SNR-γ weights [B] (arXiv 2303.09556), for what this process predicts.

        Raises:
            ValueError: see ``signal_to_noise``.
        """
        raise InputError("snr_gamma is for diffusion models; for flow matching leave it out")


class Diffusion(Noising):
    """Stable Diffusion's: ``√ᾱ·x + √(1-ᾱ)·noise`` at integer timesteps, by a scheduler of diffusers.

    Args:
        scheduler: has ``add_noise``, ``alphas_cumprod``, and ``get_velocity`` where the velocity is predicted.
    """

    def __init__(self, scheduler: Any):
        self.scheduler = scheduler
        self.timesteps = int(scheduler.config["num_train_timesteps"])
        self.predicts: str = scheduler.config["prediction_type"]

    def draw(self, sampling: str, low: int, high: int, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
        if sampling in ("auto", "uniform"):
            return torch.randint(low, high, (), generator=generator)
        place = torch.randn((), generator=generator, dtype=torch.float64).sigmoid()
        return (low + (high - low) * place).long().clamp(max=high - 1)

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        result: Tensor = self.scheduler.add_noise(latents, noise, timesteps)
        return result

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return _TARGETS[self.predicts](self.scheduler, latents, noise, timesteps)

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        kept = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        return kept / (1 - kept)

    def min_snr_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        snr = self.signal_to_noise(timesteps)
        capped = snr.clamp(max=gamma)
        if self.predicts == "sample":
            return capped
        if self.predicts == "v_prediction":
            return capped / (snr + 1)
        return (gamma / snr).clamp(max=1)  # as min(snr, γ)/snr, also where snr is infinite or 0


class FlowMatching(Noising):
    """``(1-σ)·x + σ·noise`` with σ = timestep/1000; what is predicted is ``noise - x``.

    Args:
        config: of a scheduler of diffusers: its shift, for all sizes alike or by the number of tokens.
    """

    timesteps = TIMESTEPS

    def __init__(self, config: Any):
        self._dynamic = bool(config.get("use_dynamic_shifting"))
        self._shift = float(config.get("flow_shift") or config.get("shift") or 1.0)
        self._config = config

    def draw(self, sampling: str, low: int, high: int, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
        if sampling in ("auto", "logit_normal"):
            sigma = torch.randn((), generator=generator).sigmoid()
        else:
            sigma = torch.rand((), generator=generator)
        if sampling in ("auto", "shifted"):
            shift = self.shift(shape)
            sigma = shift * sigma / (1 + (shift - 1) * sigma)
        return low + (high - low) * sigma

    def shift(self, shape: tuple[int, ...]) -> float:
        """How much later timesteps are than without it, for latents of this shape; 1 is not at all."""
        if not self._dynamic:
            return self._shift
        tokens = shape[-1] * shape[-2] // 4  # such models read patches of 2 × 2 latents
        few, many = self._config.get("base_image_seq_len", 256), self._config.get("max_image_seq_len", 4096)
        least, most = self._config.get("base_shift", 0.5), self._config.get("max_shift", 1.15)
        return math.exp(least + (most - least) * (tokens - few) / (many - few))

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigma = (timesteps / TIMESTEPS).to(latents.dtype).view(-1, *[1] * (latents.ndim - 1))
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents


def noising_of(scheduler: Any, zero_terminal_snr: bool = False) -> Noising:
    """The forward process that a scheduler of diffusers undoes.

    Args:
        scheduler: any that pipelines have; one with ``add_noise`` of training is used as it is.
        zero_terminal_snr: rescale its schedule so that the last timestep is noise alone.

    Raises:
        ValueError: what it predicts is not known, or its last timestep cannot be noise alone.
    """
    from diffusers import DDPMScheduler

    config = scheduler.config
    name, predicts = type(scheduler).__name__, config.get("prediction_type")
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas") or predicts == "flow_prediction":
        if zero_terminal_snr:
            raise InputError("zero_terminal_snr is for diffusion models; flow matching ends in noise alone anyway")
        return FlowMatching(config)
    if predicts not in PREDICTION_TYPES:
        raise InputError(f"{name} has the prediction_type {predicts!r}; accepted are {', '.join(PREDICTION_TYPES)}")
    if zero_terminal_snr and predicts == "epsilon":
        raise InputError(
            "zero_terminal_snr is for models that predict the velocity (v_prediction); this one predicts the noise, of "
            "which the last timestep would then tell nothing"
        )
    own = isinstance(scheduler, DDPMScheduler) and not zero_terminal_snr
    options = {"rescale_betas_zero_snr": True} if zero_terminal_snr else {}
    return Diffusion(scheduler if own else DDPMScheduler.from_config(config, **options))
