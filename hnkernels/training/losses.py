"""What training brings down: the denoising error, the distance from given LoRAs, the size of generated weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from hnkernels.errors import InputError
from hnkernels.generator import GeneratedWeights
from hnkernels.generator.algebra import squared_norms
from hnkernels.generator.lora import weights_of_loras
from hnkernels.training.families import Family, family_of
from hnkernels.training.noising import Noising
from hnkernels.training.objective import DEFAULT, Objective


class Step(NamedTuple):
    """What a loss may use.

    Attributes:
        model: the denoiser, with the network acting in it.
        scheduler: the diffusers noise schedule that was given; ``None`` for the model's own.
        batch: what the step was given, encoded where the loss denoises.
        generator: a CPU generator for noise and timesteps, or ``None``.
        weights: what a ``WeightHypernetwork`` made of the batch's conditions; ``None`` for a ``Hypernetwork``.
        process: how the model is called and noise is added; ``None`` for what follows from the model and scheduler.
    """

    model: Any
    scheduler: Any
    batch: Mapping[str, Any]
    generator: Generator | None
    weights: GeneratedWeights | None
    process: Process | None = None


class Process(NamedTuple):
    """How a model denoises, as far as it is the same in all steps of a run."""

    family: Family
    noising: Noising
    objective: Objective


Loss = Callable[[Step], Tensor]
"""Step → one number, the mean over the batch. Unless it has an attribute ``denoises = False``, latents are there."""


def denoising(step: Step) -> Tensor:
    """The mean error of the prediction, in fp32 at least: squared, unless the settings say otherwise."""
    process = step.process or process_of(step.model, step.scheduler)
    errors, timesteps = denoising_errors(process, step.batch, step.generator)
    for weights in (process.objective.weights(process.noising, timesteps), step.batch.get("loss_weight")):
        if weights is not None:
            errors = errors * weights.to(errors)
    return errors.mean()


def process_of(model: Any, scheduler: Any = None, objective: Objective = DEFAULT) -> Process:
    """How a model is trained.

    Args:
        model: a diffusers pipeline, or its UNet or transformer.
        scheduler: a diffusers noise schedule in the place of the model's own.
        objective: the settings of the error.

    Raises:
        ValueError: the model is of no known family.
    """
    family = family_of(model)
    return Process(family, family.noising(scheduler), objective)


def draw(process: Process, batch: Mapping[str, Any], generators: Sequence[Generator | None]) -> dict[str, Any]:
    """The batch with noise and timesteps, each sample's from a generator of its own; what it has already stays."""
    latents, drawn = batch["latents"], dict(batch)
    shape, objective = latents.shape[1:], process.objective
    if "noise" not in batch:
        drawn["noise"] = torch.stack([objective.noise(shape, g) for g in generators])
    if "timesteps" not in batch:
        drawn["timesteps"] = torch.stack([objective.timestep(process.noising, shape, g) for g in generators])
    return drawn


def denoising_errors(process: Process, batch: Mapping[str, Any], generator: Generator | None) -> tuple[Tensor, Tensor]:
    """The error of every sample and its timestep, [B] each.

    Args:
        process: how the model is called and noise is added.
        batch: ``latents``, what the family asks for beside them; optional ``noise``, ``timesteps`` and ``loss_mask``
            [B, 1, h, w].
        generator: for noise and timesteps, where the batch has none.
    """
    family, noising, objective = process
    batch = draw(process, batch, [generator] * len(batch["latents"]))
    latents = family.given(batch, "latents")
    noise, timesteps = batch["noise"].to(latents), batch["timesteps"].to(latents.device)
    prediction = family.predict(noising.noisy(latents, noise, timesteps), timesteps, batch)
    mask = batch.get("loss_mask")
    return objective.errors(prediction, noising.target(latents, noise, timesteps), mask), timesteps


class Reconstruction:
    """How far generated weights are from given LoRAs: ``Σ‖ΔW - ΔW*‖² / Σ‖ΔW*‖²`` over all layers, mean over the batch.

    The batch has ``lora``, one state dict per condition (see ``generator.lora.weights_of_loras``). 1 at the start,
    where ΔW is 0.
    """

    denoises = False

    def __call__(self, step: Step) -> Tensor:
        if step.weights is None:
            raise InputError("reconstruction is for a WeightHypernetwork; a Hypernetwork generates no weights")
        if "lora" not in step.batch:
            raise InputError(
                f"reconstruction needs 'lora' in the batch, a state dict each; it has {sorted(step.batch)}"
            )
        targets = weights_of_loras(step.weights.layers, step.batch["lora"], step.weights.device)
        if targets.sets != step.weights.sets:
            raise InputError(f"the batch has {step.weights.sets} conditions and {targets.sets} LoRAs; give one each")
        difference = _difference(step.weights, targets)
        size = _sum_of_squares(targets)
        if not bool((size > 0).all()):
            raise InputError("a LoRA of the batch changes nothing, and cannot be a measure")
        return (_sum_of_squares(difference) / size).mean()


class Penalty:
    """The size of the generated weights; see ``GeneratedWeights.penalty``."""

    denoises = False

    def __init__(self, l1: float = 0.0, l2: float = 0.0):
        self.l1, self.l2 = l1, l2

    def __call__(self, step: Step) -> Tensor:
        if step.weights is None:
            raise InputError("the penalty is for a WeightHypernetwork; a Hypernetwork generates no weights")
        return step.weights.penalty(self.l1, self.l2)


class Mixture:
    """Several losses at once, each with its weight: ``Mixture((1.0, denoising), (0.1, Reconstruction()))``."""

    def __init__(self, *parts: tuple[float, Loss]):
        if not parts or not all(isinstance(part, tuple) and len(part) == 2 and callable(part[1]) for part in parts):
            raise InputError(f"a Mixture is made of (weight, loss) pairs, not {parts!r}")
        self.parts = parts
        self.denoises = any(denoises(loss) for _, loss in parts)

    def __call__(self, step: Step) -> Tensor:
        first, *others = (weight * loss(step) for weight, loss in self.parts)
        return sum(others, first)


def denoises(loss: Loss) -> bool:
    """Whether a loss needs latents and text."""
    return bool(getattr(loss, "denoises", True))


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
