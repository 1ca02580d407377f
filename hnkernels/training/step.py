"""One optimiser step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hnkernels.adapter import attach
from hnkernels.adapter.host import Host
from hnkernels.adapter.layers import TARGETS, denoiser
from hnkernels.generator import GeneratedWeights, WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training.losses import Loss, Step, denoises, denoising

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
    scheduler = noise_scheduler or make_noise_scheduler(model)
    device = unet.device.type
    precision = _PRECISIONS[mixed_precision]
    net.train()
    optimizer.zero_grad(set_to_none=True)
    encoded = [_encode(model, micro_batch, denoises(loss)) for micro_batch in micro_batches]
    examples = sum(map(_rows, encoded))
    total = 0.0
    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        if not is_attached(unet, net):
            stack.enter_context(
                attach(unet, net) if isinstance(net, WeightHypernetwork) else attach(unet, net, targets=targets)
            )
        for data in encoded:
            with ExitStack() as within:
                within.enter_context(torch.autocast(device, precision, enabled=precision is not None))
                weights = within.enter_context(_conditioned(unet, net, data))
                value = loss(Step(unet, scheduler, data, generator, weights)) * (_rows(data) / examples)
            total += value.item()
            if not math.isfinite(total):
                optimizer.zero_grad(set_to_none=True)
                return {"loss": total, "grad_norm": math.nan, "updated": 0.0}
            (scaler.scale(value) if scaler is not None else value).backward()
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters]).item()
    finite = math.isfinite(norm)
    if finite and gradient_clip is not None:
        if gradient_clip_mode == "norm":
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip, torch.tensor(norm))
        else:
            nn.utils.clip_grad_value_(parameters, gradient_clip)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    elif finite:
        optimizer.step()
    return {"loss": total, "grad_norm": norm, "updated": float(finite)}


def is_attached(unet: nn.Module, net: nn.Module) -> bool:
    """Whether this network acts on this model already."""
    return adapter_of(unet, net) is not None


def adapter_of(unet: nn.Module, net: nn.Module) -> Any:
    """The handle by which this network acts on this model, or ``None``."""
    host = Host.of(unet)
    adapters = () if host is None else host.adapters
    return next((adapter for adapter in adapters if getattr(adapter, "net", None) is net), None)


@contextmanager
def _conditioned(unet: nn.Module, net: nn.Module, data: Batch) -> Iterator[GeneratedWeights | None]:
    """The weights for the batch, acting inside; ``None`` for a network that generates none."""
    if not isinstance(net, WeightHypernetwork):
        yield None
        return
    condition = data.get("condition", data.get("encoder_hidden_states"))
    if condition is None:
        raise ValueError(f"batch needs 'condition', or text embeddings in its place; it has {sorted(data)}")
    if isinstance(condition, Tensor):
        like = next(net.parameters())
        condition = condition.to(like if condition.is_floating_point() else like.device)
    weights = net.generate_weights(condition, data.get("condition_mask"))
    with adapter_of(unet, net).condition(weights, guidance=False):  # no row of a training batch is unconditional
        yield weights


def _rows(data: Batch) -> int:
    return len(next(data[key] for key in ("latents", "condition") if key in data))


def make_noise_scheduler(model: Any) -> Any:
    """The forward process that the model was trained with; Stable Diffusion's for a model without a scheduler."""
    from diffusers import DDPMScheduler

    scheduler = getattr(model, "scheduler", None)
    if scheduler is not None:
        return DDPMScheduler.from_config(scheduler.config)
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


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
def _encode(model: Any, batch: Batch, denoises: bool) -> dict[str, Any]:
    """The batch with latents and text embeddings, if the loss denoises."""
    data = {key: value for key, value in batch.items() if key not in ("pixel_values", "captions")}
    if not denoises:
        if not {"latents", "condition"} & set(batch):
            raise ValueError(f"batch needs 'condition', or 'latents'; it has {sorted(batch)}")
        return data
    if "latents" in batch:
        pass
    elif "pixel_values" in batch and hasattr(model, "vae"):
        vae = model.vae
        latents = vae.encode(batch["pixel_values"].to(vae.device, vae.dtype)).latent_dist.sample()
        data["latents"] = (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor
    else:
        raise ValueError(f"batch needs 'latents', or 'pixel_values' and a pipeline with a VAE; it has {sorted(batch)}")
    if "encoder_hidden_states" in batch:
        pass
    elif "captions" in batch and hasattr(model, "encode_prompt"):
        from hnkernels.training.data.encoding import TextEncoder

        data["encoder_hidden_states"] = TextEncoder(model)(batch["captions"])
    else:
        raise ValueError(f"batch needs 'encoder_hidden_states', or 'captions' and a pipeline; it has {sorted(batch)}")
    return data
