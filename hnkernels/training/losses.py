"""What training brings down: the denoising error, the distance from given LoRAs, the size of generated weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from hnkernels.generator import GeneratedWeights
from hnkernels.generator.algebra import squared_norms
from hnkernels.generator.lora import weights_of_loras


class Step(NamedTuple):
    """What a loss may use.

    Attributes:
        model: the UNet, with the network acting in it.
        scheduler: the diffusers noise schedule.
        batch: what the step was given, encoded where the loss denoises.
        generator: a CPU generator for noise and timesteps, or ``None``.
        weights: what a ``WeightHypernetwork`` made of the batch's conditions; ``None`` for a ``Hypernetwork``.
    """

    model: Any
    scheduler: Any
    batch: Mapping[str, Any]
    generator: Generator | None
    weights: GeneratedWeights | None


Loss = Callable[[Step], Tensor]
"""Step → one number, the mean over the batch. Unless it has an attribute ``denoises = False``, latents are there."""

_TARGETS: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda scheduler, latents, noise, timesteps: noise,
    "v_prediction": lambda scheduler, latents, noise, timesteps: scheduler.get_velocity(latents, noise, timesteps),
    "sample": lambda scheduler, latents, noise, timesteps: latents,
}
PREDICTION_TYPES = tuple(_TARGETS)
"""What a model may predict: the noise, the velocity or the latents."""


def denoising(step: Step) -> Tensor:
    """Mean squared error of the prediction, in fp32 at least."""
    return denoising_loss(step.model, step.scheduler, step.batch, step.generator)


class Reconstruction:
    """How far generated weights are from given LoRAs: ``Σ‖ΔW - ΔW*‖² / Σ‖ΔW*‖²`` over all layers, mean over the batch.

    The batch has ``lora``, one state dict per condition (see ``generator.lora.weights_of_loras``). 1 at the start,
    where ΔW is 0.
    """

    denoises = False

    def __call__(self, step: Step) -> Tensor:
        if step.weights is None:
            raise ValueError("reconstruction is for a WeightHypernetwork; a Hypernetwork generates no weights")
        if "lora" not in step.batch:
            raise ValueError(
                f"reconstruction needs 'lora' in the batch, a state dict each; it has {sorted(step.batch)}"
            )
        targets = weights_of_loras(step.weights.layers, step.batch["lora"], step.weights.device)
        if targets.sets != step.weights.sets:
            raise ValueError(f"the batch has {step.weights.sets} conditions and {targets.sets} LoRAs; give one each")
        difference = _difference(step.weights, targets)
        size = _sum_of_squares(targets)
        if not bool((size > 0).all()):
            raise ValueError("a LoRA of the batch changes nothing, and cannot be a measure")
        return (_sum_of_squares(difference) / size).mean()


class Penalty:
    """The size of the generated weights; see ``GeneratedWeights.penalty``."""

    denoises = False

    def __init__(self, l1: float = 0.0, l2: float = 0.0):
        self.l1, self.l2 = l1, l2

    def __call__(self, step: Step) -> Tensor:
        if step.weights is None:
            raise ValueError("the penalty is for a WeightHypernetwork; a Hypernetwork generates no weights")
        return step.weights.penalty(self.l1, self.l2)


class Mixture:
    """Several losses at once, each with its weight: ``Mixture((1.0, denoising), (0.1, Reconstruction()))``."""

    def __init__(self, *parts: tuple[float, Loss]):
        if not parts or not all(isinstance(part, tuple) and len(part) == 2 and callable(part[1]) for part in parts):
            raise ValueError(f"a Mixture is made of (weight, loss) pairs, not {parts!r}")
        self.parts = parts
        self.denoises = any(denoises(loss) for _, loss in parts)

    def __call__(self, step: Step) -> Tensor:
        first, *others = (weight * loss(step) for weight, loss in self.parts)
        return sum(others, first)


def denoises(loss: Loss) -> bool:
    """Whether a loss needs latents and text."""
    return bool(getattr(loss, "denoises", True))


def denoising_loss(unet: Any, scheduler: Any, data: Mapping[str, Any], generator: Generator | None) -> Tensor:
    """The denoising error of a UNet; see ``denoising``."""
    latents = data["latents"].to(unet.device, unet.dtype)
    noise = data.get("noise")
    if noise is None:
        noise = torch.randn(latents.shape, generator=generator)
    timesteps = data.get("timesteps")
    if timesteps is None:
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
    noise, timesteps = noise.to(latents.device, latents.dtype), timesteps.to(latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    context = data["encoder_hidden_states"].to(unet.device, unet.dtype)
    prediction = unet(noisy, timesteps, encoder_hidden_states=context).sample
    target = _TARGETS[scheduler.config.prediction_type](scheduler, latents, noise, timesteps)
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return F.mse_loss(prediction.to(dtype), target.to(dtype))


def _difference(weights: GeneratedWeights, targets: GeneratedWeights) -> Sequence[tuple[Tensor, Tensor]]:
    """Factors of ``ΔW - ΔW*`` by layer: those of both one after another."""
    pairs = []
    for layer in targets.layers:
        a, b = weights.factors(layer.name)
        scale = weights.scales(layer.name)
        b = b if scale is None else b * scale[:, None, None]
        a_t, b_t = targets.factors(layer.name)
        pairs.append((torch.cat([a.to(a_t), a_t], 1), torch.cat([b.to(b_t), -b_t], 2)))
    return pairs


def _sum_of_squares(pairs: GeneratedWeights | Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """``Σ‖B A‖²`` over the layers, [G]."""
    if isinstance(pairs, GeneratedWeights):
        pairs = [pairs.factors(layer.name) for layer in pairs.layers]
    return torch.stack([squared_norms(a, b) for a, b in pairs]).sum(0)
