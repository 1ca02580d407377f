"""Turning examples into what a model trains on: latents and text embeddings, each computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.captions import CaptionMaker
from hnkernels.training.data.examples import Example
from hnkernels.training.families import Family, family_of
from hnkernels.training.families.family import resolution_of
from hnkernels.training.objective import stacked
from hnkernels.training.sampler import generator_of

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

    def groups(self) -> list[Any]:
        """What rows must have in common to make a batch: the forms of their tensors."""
        return [tuple(tuple(t.shape) for t in row.values() if isinstance(t, Tensor)) for row in self.rows]

    def batch(self, indices: Sequence[int], generators: Sequence[Generator]) -> dict[str, Any]:
        """Latents [B, C, h, w], embeddings [B, tokens, d] and the rest of these rows."""
        return {key: stacked([self.rows[i][key] for i in indices]) for key in self.rows[0]}

    def plain_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """The same with nothing drawn, as it is in rows anyway."""
        return self.batch(indices, [])


class PipelineData:
    """Images and captions, encoded by the pipeline's own VAE and text encoder.

    Args:
        family: of the pipeline.
        examples: the images and captions; see ``checks.check_examples``.
        config: resolution, latent sampling and caption settings.
        name: the network's name, for the caption template.
    """

    def __init__(self, family: Family, examples: Sequence[Example], config: TrainingConfig, name: str):
        self.family, self.examples = family, examples
        self.text = TextEncoder(family, config.clip_skip)
        self._sampling = config.latent_sampling
        self._captions = CaptionMaker(
            config.caption_template, name, config.shuffle_tags, config.tag_dropout, config.caption_dropout
        )
        self._resolution, self._seed = resolution_of(family, config.resolution), config.seed

    def __len__(self) -> int:
        return len(self.examples)

    def groups(self) -> list[Any]:
        """What examples must have in common to make a batch: the size of their latents."""
        return [0] * len(self.examples)

    def batch(self, indices: Sequence[int], generators: Sequence[Generator]) -> dict[str, Any]:
        """Latents [B, C, h, w], embeddings [B, tokens, d] and conditions, if there are any, of these examples."""
        latents = self._means[list(indices)]
        if self._deviations is not None:
            noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
            latents = latents + self._deviations[list(indices)] * noise
        captions = [self._captions(self.examples[i].caption, g) for i, g in zip(indices, generators, strict=True)]
        batch = {"latents": latents, **self.text(captions)}
        conditions = [self.examples[i].condition for i in indices]
        return batch if conditions[0] is None else {**batch, "condition": stacked(conditions)}

    @torch.no_grad()
    def encode(self) -> None:
        """Encodes the pictures, which ``batch`` needs."""
        means, deviations = [], []
        for start in range(0, len(self.examples), 8):
            pixels = torch.stack([e.pixels(self._resolution) for e in self.examples[start : start + 8]])
            mean, deviation = self.family.posterior(pixels)
            means.append(mean.cpu())
            deviations.append(deviation.cpu())
        mean, deviation = torch.cat(means), torch.cat(deviations)
        if self._sampling == "once":
            generators = [generator_of(self._seed, "latents", i) for i in range(len(mean))]
            mean = mean + deviation * torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators])
        self._means, self._deviations = mean, deviation if self._sampling == "random" else None


class TextEncoder:
    """Captions → what the model takes of them (``Family.text_keys`` → [B, ...]), each caption encoded once.

    Captions longer than CLIP reads at once are several parts, and in a batch with them the others are followed by
    empty parts.
    """

    def __init__(self, family: Family, clip_skip: int = 1):
        self.family, self._clip_skip = family, clip_skip
        self._known: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        new = [c for c in dict.fromkeys(captions) if c not in self._known]
        if len(self._known) + len(new) > _TEXTS_AT_MOST:
            self._known.clear()
            new = list(dict.fromkeys(captions))
        together: list[str] = []
        alone: list[str] = []
        for caption in new:
            (alone if self.family.encodes_alone(caption) else together).append(caption)
        for some in [together, *([one] for one in alone)]:
            if some:
                texts = self.family.text(some, self._clip_skip)
                self._known.update((c, {key: t[i] for key, t in texts.items()}) for i, c in enumerate(some))
        rows = [self._known[c] for c in captions]
        lengths = {len(row["encoder_hidden_states"]) for row in rows}
        if len(lengths) > 1:
            rows = [self._filled(row, max(lengths)) for row in rows]
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def _filled(self, row: dict[str, Tensor], length: int) -> dict[str, Tensor]:
        """A row whose embeddings are followed by those of no text."""
        own = row["encoder_hidden_states"]
        empty = self._empty()
        parts = [own, *[empty] * ((length - len(own)) // len(empty))]
        return {**row, "encoder_hidden_states": torch.cat(parts)}

    def _empty(self) -> Tensor:
        if "" not in self._known:
            texts = self.family.text([""], self._clip_skip)
            self._known[""] = {key: t[0] for key, t in texts.items()}
        return self._known[""]["encoder_hidden_states"]


def text_embedding(pipeline: Any, caption: str) -> Tensor:
    """The embedding of one caption, [1, tokens, d]."""
    return TextEncoder(family_of(pipeline))([caption])["encoder_hidden_states"]
