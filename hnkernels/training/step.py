"""One optimiser step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from hnkernels.adapter import attach
from hnkernels.adapter.host import Host
from hnkernels.adapter.layers import TARGETS, denoiser
from hnkernels.errors import InputError
from hnkernels.generator import GeneratedWeights, WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training.data.text_encoder import TextEncoder
from hnkernels.training.losses import Loss, Process, Step, denoises, denoising, process_of
from hnkernels.training.processes import ALONE, Processes

Batch = Mapping[str, Any]
_PRECISIONS = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def train_hypernetwork(
    net: Hypernetwork | WeightHypernetwork,
    model: Any,
    batch: Batch | Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    noise_scheduler: Any = None,
    mixed_precision: str = "no",
    scaler: torch.amp.GradScaler | None = None,
    gradient_clip: float | None = None,
    gradient_clip_mode: str = "norm",
    generator: Generator | None = None,
    targets: Sequence[str] = TARGETS,
    loss: Loss = denoising,
) -> dict[str, float]:
    """One optimiser step of a hypernetwork of either kind on a frozen model.

    The network is attached for the step if it is not attached already, and set to training mode. The model takes no
    gradient, whatever its parameters say.

    Args:
        net: the hypernetwork; ``optimizer`` holds its parameters.
        model: a diffusers pipeline or UNet.
        batch: ``latents`` [B, C, h, w], scaled as the UNet expects them, or (pipelines only) ``pixel_values``
            [B, 3, H, W] in [-1, 1]; and ``encoder_hidden_states`` [B, tokens, d] or (pipelines only) ``captions``, B
            strings. Optional ``noise`` like the latents and ``timesteps`` [B]; drawn where absent. A sequence of such
            mappings accumulates their gradients, each weighted by its share of the examples. For a
            ``WeightHypernetwork`` also ``condition``, what its ``generate_weights`` takes for B rows, with
            ``condition_mask`` if need be; without it the text embeddings are the condition.
        optimizer: steps once, unless the loss or the gradient is not finite.
        noise_scheduler: a diffusers scheduler; ``None`` takes the pipeline's noise schedule, or Stable Diffusion's.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        scaler: loss scaler for fp16; gradients are unscaled before they are clipped.
        gradient_clip: largest norm, or value, of the gradient.
        gradient_clip_mode: ``"norm"`` or ``"value"``.
        generator: a CPU generator for noise and timesteps.
        targets: kinds of attention to act on, if a ``Hypernetwork`` is attached here.
        loss: what is brought down; see ``training.losses``. One that does not denoise needs nothing in the batch but
            the conditions and what it asks for itself.

    Returns:
        ``loss`` (mean over the examples), ``grad_norm`` (before clipping) and ``updated``, 0.0 where the step was
        left out because one of them was not finite.

    Raises:
        ValueError: the batch lacks something that the model cannot make itself.
    """
    micro_batches = [batch] if isinstance(batch, Mapping) else list(batch)
    unet: Any = denoiser(model)
    process = process_of(model, noise_scheduler) if denoises(loss) else None
    encoded = [_encode(process, micro_batch) for micro_batch in micro_batches]
    net.train()
    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        if not is_attached(unet, net):
            stack.enter_context(
                attach(unet, net) if isinstance(net, WeightHypernetwork) else attach(unet, net, targets=targets)
            )
        taken = take_step(
            net,
            unet,
            encoded,
            optimizer,
            process=process,
            loss=loss,
            mixed_precision=mixed_precision,
            scaler=scaler,
            gradient_clip=gradient_clip,
            gradient_clip_mode=gradient_clip_mode,
            generator=generator,
            scheduler=noise_scheduler,
        )
    metrics = taken.metrics()
    return {key: metrics[key] for key in ("loss", "grad_norm", "updated")}


class Taken(NamedTuple):
    """What became of a step: tensors without dimensions, on the device that computed them.

    Attributes:
        loss: mean over the examples.
        grad_norm: before clipping.
        finite: whether both are finite, which is whether the optimiser has stepped.
        asked: how many processes were asked to stop.
    """

    loss: Tensor
    grad_norm: Tensor
    finite: Tensor
    asked: Tensor

    def metrics(self) -> dict[str, float]:
        """As numbers. Waits for the device."""
        numbers = torch.stack([value.to(self.loss) for value in self]).tolist()
        return dict(zip(("loss", "grad_norm", "updated", "asked"), numbers, strict=True))


def take_step(
    net: Hypernetwork | WeightHypernetwork,
    unet: Any,
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    process: Process | None,
    loss: Loss = denoising,
    mixed_precision: str = "no",
    scaler: torch.amp.GradScaler | None = None,
    gradient_clip: float | None = None,
    gradient_clip_mode: str = "norm",
    generator: Generator | None = None,
    scheduler: Any = None,
    alive: Tensor | None = None,
    processes: Processes = ALONE,
    examples: int | None = None,
    asked: bool = False,
) -> Taken:
    """One optimiser step of an attached network on a frozen model, without waiting for the device.

    That holds for optimisers that leave out a step by themselves (those with ``fused``, see ``GradScaler``); with
    others it waits for the gradient's norm.

    Args:
        net, unet, optimizer, loss, mixed_precision, scaler, gradient_clip, gradient_clip_mode, generator: see
            ``train_hypernetwork``.
        batches: encoded; none for a process that has no example of this step.
        process: how the model is called; ``None`` for a loss that does not denoise.
        scheduler: what the loss is told besides; see ``losses.Step``.
        alive: 1, or NaN where a step before was not finite and this one is to change nothing.
        processes: those that take the step together.
        examples: of all processes in this step; ``None`` for those of ``batches``.
        asked: whether this process was asked to stop; all learn of it.
    """
    optimizer.zero_grad(set_to_none=True)
    examples = examples or sum(map(_rows, batches))
    device = next(net.parameters()).device
    total = torch.zeros((), device=device)
    for data in batches:
        with ExitStack() as within:
            within.enter_context(autocast(device, mixed_precision))
            if process is not None and process.family.casts_layerwise():
                within.enter_context(saved_tensors_hooks(_as_it_is_now, _unpacked))
            weights = within.enter_context(conditioned(unet, net, data))
            value = loss(Step(unet, scheduler, data, generator, weights, process)) * (_rows(data) / examples)
        if alive is not None:
            value = value * alive
        total = total + value.detach()
        (scaler.scale(value) if scaler is not None else value).backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total, everywhere = processes.add_gradients(parameters, torch.stack([total, torch.full_like(total, asked)]))
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [p for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    finite = total.isfinite() & norm.isfinite()
    if gradient_clip is not None:
        if gradient_clip_mode == "norm":
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip, norm)
        else:
            nn.utils.clip_grad_value_(parameters, gradient_clip)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    else:
        _step_if(optimizer, finite)
    return Taken(total, norm, finite, everywhere)


def _as_it_is_now(saved: Tensor) -> Tensor:
    """What autograd is to keep of a tensor: under layerwise casting a weight has other data after its layer's call."""
    return saved.detach() if isinstance(saved, nn.Parameter) else saved


def _unpacked(kept: Tensor) -> Tensor:
    return kept


def _step_if(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Steps where the gradient is finite. What an optimiser is told for that is what ``GradScaler`` tells it."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        told: Any = optimizer
        told.grad_scale, told.found_inf = None, (~finite).float()
        try:
            optimizer.step()
        finally:
            del told.grad_scale, told.found_inf
    elif finite.item():
        optimizer.step()


def is_attached(unet: nn.Module, net: nn.Module) -> bool:
    """Whether this network acts on this model already."""
    return adapter_of(unet, net) is not None


def adapter_of(unet: nn.Module, net: nn.Module) -> Any:
    """The handle by which this network acts on this model, or ``None``."""
    host = Host.of(unet)
    adapters = () if host is None else host.adapters
    return next((adapter for adapter in adapters if getattr(adapter, "net", None) is net), None)


def autocast(device: torch.device, mixed_precision: str) -> torch.autocast:
    """Autocast on a device, or none for ``"no"``."""
    precision = _PRECISIONS[mixed_precision]
    return torch.autocast(device.type, precision, enabled=precision is not None)


@contextmanager
def conditioned(unet: nn.Module, net: nn.Module, data: Batch) -> Iterator[GeneratedWeights | None]:
    """The weights for the batch, acting inside; ``None`` for a network that generates none."""
    if not isinstance(net, WeightHypernetwork):
        yield None
        return
    condition = data.get("condition", data.get("encoder_hidden_states"))
    if condition is None:
        raise InputError(f"batch needs 'condition', or text embeddings in its place; it has {sorted(data)}")
    if isinstance(condition, Tensor):
        like = next(net.parameters())
        condition = condition.to(like if condition.is_floating_point() else like.device)
    weights = net.generate_weights(condition, data.get("condition_mask"))
    with adapter_of(unet, net).condition(weights, guidance=False):  # no row of a training batch is unconditional
        yield weights


def _rows(data: Batch) -> int:
    return len(next(data[key] for key in ("latents", "condition") if key in data))


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """No parameter of the model (a module, or the modules of a pipeline) takes a gradient inside."""
    modules = [model] if isinstance(model, nn.Module) else model.components.values()
    parameters = [p for m in modules if isinstance(m, nn.Module) for p in m.parameters() if p.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@torch.no_grad()
def _encode(process: Process | None, batch: Batch) -> dict[str, Any]:
    """The batch with latents and text embeddings, if the loss denoises."""
    data = {key: value for key, value in batch.items() if key not in ("pixel_values", "captions")}
    if process is None:
        if not {"latents", "condition"} & set(batch):
            raise InputError(f"batch needs 'condition', or 'latents'; it has {sorted(batch)}")
        return data
    family = process.family
    encoder = TextEncoder(family) if family.pipeline is not None else None
    if "latents" not in batch:
        if "pixel_values" not in batch or not hasattr(family.pipeline, "vae"):
            raise InputError(
                f"batch needs 'latents', or 'pixel_values' and a pipeline with a VAE; it has {sorted(batch)}"
            )
        mean, deviation = family.posterior(batch["pixel_values"])
        data["latents"] = mean + deviation * torch.randn(mean.shape, device=mean.device)
        height, width = batch["pixel_values"].shape[-2:]
        told = family.of_picture((width, height), (0, 0), (width, height))
        data.update({key: value.expand(len(mean), *value.shape) for key, value in told.items() if key not in data})
    if "encoder_hidden_states" not in batch:
        if "captions" not in batch or encoder is None or not hasattr(family.pipeline, "encode_prompt"):
            raise InputError(
                f"batch needs 'encoder_hidden_states', or 'captions' and a pipeline; it has {sorted(batch)}"
            )
        data.update(encoder(batch["captions"]))
    if missing := [key for key in (*family.text_keys, *family.picture_keys) if key not in data]:
        raise InputError(f"a batch for {family.label} needs {', '.join(map(repr, missing))} too; it has {sorted(data)}")
    return data
