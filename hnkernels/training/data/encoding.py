"""Turning examples into what the UNet trains on: latents and text embeddings, each computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from hnkernels.training.checks import resolution_of
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.captions import CaptionMaker
from hnkernels.training.data.examples import Example

_TEXTS_AT_MOST = 4096  # shuffled captions are endless; a CLIP embedding is 236 KB in fp32


class TensorData:
    """Training data that is encoded already, for a UNet without its pipeline.

    Args:
        rows: mappings with ``latents`` [C, h, w], scaled as the UNet expects them, and ``encoder_hidden_states``
            [tokens, d]; and whatever else ``train_hypernetwork`` or the loss takes, one row each: ``condition``, say.
        denoises: whether latents and embeddings are needed; else ``condition`` is.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], denoises: bool = True):
        needed = {"latents", "encoder_hidden_states"} if denoises else {"condition"}
        for row in rows:
            if not needed <= set(row):
                names = " and ".join(map(repr, sorted(needed, reverse=True)))
                raise ValueError(f"encoded data needs {names}, found {sorted(row)}")
            if set(row) != set(rows[0]):
                raise ValueError(f"all rows need the same keys, found {sorted(rows[0])} and {sorted(row)}")
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int], generator: Generator) -> dict[str, Any]:
        """Latents [B, C, h, w], embeddings [B, tokens, d] and the rest of these rows."""
        return {key: _together([self.rows[i][key] for i in indices]) for key in self.rows[0]}


def _together(values: list[Any]) -> Any:
    """Tensors stacked, anything else as a list."""
    return torch.stack(values) if isinstance(values[0], Tensor) else values


class PipelineData:
    """Images and captions, encoded by the pipeline's own VAE and text encoder.

    Args:
        pipeline: a diffusers Stable Diffusion pipeline.
        examples: the images and captions; see ``checks.check_examples``.
        config: resolution, latent sampling and caption settings.
        name: the network's name, for the caption template.
    """

    def __init__(self, pipeline: Any, examples: Sequence[Example], config: TrainingConfig, name: str):
        self.pipeline, self.examples = pipeline, examples
        self.text = TextEncoder(pipeline)
        self._sampling = config.latent_sampling
        self._captions = CaptionMaker(
            config.caption_template, name, config.shuffle_tags, config.tag_dropout, config.caption_dropout
        )
        self._means, self._deviations = self._encode(resolution_of(pipeline, config), config.seed)

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Sequence[int], generator: Generator) -> dict[str, Any]:
        """Latents [B, C, h, w], embeddings [B, tokens, d] and conditions, if there are any, of these examples."""
        latents = self._means[list(indices)]
        if self._deviations is not None:
            latents = latents + self._deviations[list(indices)] * torch.randn(latents.shape, generator=generator)
        captions = [self._captions(self.examples[i].caption, generator) for i in indices]
        batch = {"latents": latents, "encoder_hidden_states": self.text(captions)}
        conditions = [self.examples[i].condition for i in indices]
        return batch if conditions[0] is None else {**batch, "condition": _together(conditions)}

    @torch.no_grad()
    def _encode(self, resolution: int, seed: int) -> tuple[Tensor, Tensor | None]:
        vae = self.pipeline.vae
        generator = torch.Generator().manual_seed(seed)
        means, deviations = [], []
        for start in range(0, len(self.examples), 8):
            pixels = torch.stack([e.pixels(resolution) for e in self.examples[start : start + 8]])
            posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
            means.append(posterior.mean.float().cpu())
            deviations.append(posterior.std.float().cpu())
        mean, deviation = torch.cat(means), torch.cat(deviations)
        shift, scaling = vae.config.get("shift_factor") or 0.0, vae.config.scaling_factor
        if self._sampling == "once":
            mean = mean + deviation * torch.randn(mean.shape, generator=generator)
        return (mean - shift) * scaling, deviation * scaling if self._sampling == "random" else None


class TextEncoder:
    """Captions → embeddings [B, tokens, d], each caption encoded once."""

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        new = [c for c in dict.fromkeys(captions) if c not in self._known]
        if len(self._known) + len(new) > _TEXTS_AT_MOST:
            self._known.clear()
            new = list(dict.fromkeys(captions))
        if new:
            embeddings, _ = self.pipeline.encode_prompt(
                new, self.pipeline.text_encoder.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            self._known.update(zip(new, embeddings, strict=True))
        return torch.stack([self._known[c] for c in captions])
