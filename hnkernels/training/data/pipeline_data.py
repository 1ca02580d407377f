"""Pictures and captions, encoded once by the pipeline's own autoencoder and text encoders."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from tqdm.auto import tqdm

from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.buckets import Buckets, Size
from hnkernels.training.data.cache import Cache, DiskCache, MemoryCache
from hnkernels.training.data.captions import CaptionMaker
from hnkernels.training.data.example import Example, pixels_of
from hnkernels.training.data.fingerprint import fingerprint_of
from hnkernels.training.data.pictures import read_picture
from hnkernels.training.data.text_encoder import TextEncoder
from hnkernels.training.families import Family
from hnkernels.training.families.family import resolution_of
from hnkernels.training.objective import stacked
from hnkernels.training.processes import ALONE, Processes
from hnkernels.training.sampler import generator_of

_TOGETHER = 8  # pictures of one size that are encoded at once
_CAPTIONS_TOGETHER = 64
_CAPTIONS_IN_MEMORY = 4096  # that are encoded ahead of their use; a CLIP embedding is 236 KB


class PipelineData:
    """Images and captions for a pipeline.

    Args:
        family: of the pipeline.
        examples: the images and captions; see ``checks.check_examples``.
        config: sizes, latent sampling, captions and the cache.
        name: the network's name, for the caption template.
        processes: those that encode a share each.
        prior: how many of the examples, the last ones, are for prior preservation.
        cache: what is encoded is kept there; ``None`` for a cache of the config's.

    Raises:
        ValueError: the header of a picture, or the cache, cannot be read.
    """

    def __init__(
        self,
        family: Family,
        examples: Sequence[Example],
        config: TrainingConfig,
        name: str,
        processes: Processes = ALONE,
        prior: int = 0,
        cache: Cache | None = None,
    ):
        self.family, self.examples, self._config, self._processes = family, examples, config, processes
        self._first_prior = len(examples) - prior
        self._captions = CaptionMaker(
            config.caption_template,
            name,
            config.shuffle_tags,
            config.tag_dropout,
            config.caption_dropout,
            config.keep_tags,
        )
        self._plain = CaptionMaker(config.caption_template, name)
        self._cache = cache or (MemoryCache() if config.cache_dir is None else DiskCache(config.cache_dir))
        self._lasting = isinstance(self._cache, DiskCache)
        self._sizes = self._choose_sizes()
        self._picture_key = text_key = ""
        if self._lasting:
            pipeline = family.pipeline
            encoders = [value for name, value in sorted(pipeline.components.items()) if name.startswith("text_encoder")]
            self._picture_key = f"{type(family).__name__} {fingerprint_of([pipeline.vae])}"
            text_key = f"{type(family).__name__} {fingerprint_of(encoders)} {config.clip_skip}"
        self._fixed = not (config.shuffle_tags or config.tag_dropout)  # other captions are endless
        self.text = TextEncoder(family, config.clip_skip, self._cache if self._fixed else None, f"text {text_key}")

    def __len__(self) -> int:
        return len(self.examples)

    def groups(self) -> list[Size]:
        """What examples must have in common to make a batch: their size in pixels."""
        return self._sizes

    def repeats(self) -> list[int]:
        """How often every example comes in an epoch."""
        return [example.repeats for example in self.examples]

    @torch.no_grad()
    def encode(self) -> list[int]:
        """Encodes what is not in the cache yet, every process its share; ``batch`` needs it.

        Returns:
            The examples whose pictures cannot be decoded, with ``skip_broken``: they have no batch.

        Raises:
            ValueError: a picture or its mask cannot be decoded (without ``skip_broken``).
        """
        new: dict[str, dict[str, Tensor]] = {}
        broken = self._encode_pictures(new)
        self._encode_captions(new)
        if not self._lasting and self._processes.count > 1:
            for entries in self._processes.all_of(new):
                self._cache.put_all(entries)
        return sorted({i for part in self._processes.all_of(broken) for i in part})

    def batch(self, indices: Sequence[int], generators: Sequence[Generator]) -> dict[str, Any]:
        """Latents [B, C, h, w], text and whatever else the model is told, and conditions if there are any.

        Args:
            indices: of the examples.
            generators: one for each: for latents, captions and mirroring, where the config draws these.
        """
        rows, captions = [], []
        for i, generator in zip(indices, generators, strict=True):
            flipped = self._config.random_flip and _chance(generator) < 0.5
            row = self._row(i, flipped)
            deviation = row.pop("deviation", None)
            if deviation is not None and self._config.latent_sampling == "random":
                row["latents"] = row["latents"] + deviation * torch.randn(deviation.shape, generator=generator)
            elif deviation is not None and self._config.latent_sampling == "once":
                once = generator_of(self._config.seed, "latents", i)
                row["latents"] = row["latents"] + deviation * torch.randn(deviation.shape, generator=once)
            captions.append(self._captions(self.examples[i].caption, generator))
            dropout = self._config.caption_dropout
            if "source_latents" in row and dropout and _chance(generator) < dropout:
                row["source_latents"] = torch.zeros_like(row["source_latents"])
            rows.append(row)
        return self._together(indices, rows, captions)

    def plain_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """The same with nothing drawn: the latents' means, whole captions in their order."""
        rows = [self._row(i, False) for i in indices]
        for row in rows:
            row.pop("deviation", None)
        return self._together(indices, rows, [self._plain(self.examples[i].caption) for i in indices])

    def _together(
        self, indices: Sequence[int], rows: Sequence[dict[str, Tensor]], captions: list[str]
    ) -> dict[str, Any]:
        batch: dict[str, Any] = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        batch |= self.text(captions)
        if self._first_prior < len(self):
            weights = [self._config.prior_loss_weight if i >= self._first_prior else 1.0 for i in indices]
            batch["loss_weight"] = torch.tensor(weights)
        conditions = [self.examples[i].condition for i in indices]
        return batch if conditions[0] is None else {**batch, "condition": stacked(conditions)}

    def _row(self, index: int, flipped: bool) -> dict[str, Tensor]:
        key = self._key(index, flipped)
        row = self._cache.get(key)
        if row is None:  # damaged in the meantime
            (row,) = self._entries([(index, flipped)])
            self._cache.put(key, row)
        return row

    def _choose_sizes(self) -> list[Size]:
        """The size in pixels that each picture is trained at."""
        config, multiple = self._config, self.family.multiple
        side = resolution_of(self.family, config.resolution)
        if not config.bucketing:
            return [(side, side)] * len(self.examples)
        buckets = Buckets(side, math.lcm(config.bucket_step, multiple), config.bucket_max_aspect)
        return [buckets.assign(*(e.size or self._cache.picture_size(e.image))) for e in self.examples]

    def _flips(self) -> tuple[bool, ...]:
        return (False, True) if self._config.random_flip else (False,)

    def _key(self, index: int, flipped: bool) -> str:
        """Under which a picture's entry is in the cache: all that its content depends on."""
        if not self._lasting:
            return f"{index} {flipped}"
        example, width, height = self.examples[index], *self._sizes[index]
        others = {"mask": example.mask, "source": example.source}
        used = {name: self._cache.content_hash(other) for name, other in others.items() if other is not None}
        parts = [self._picture_key, self._cache.content_hash(example.image), f"{width}x{height}", f"{flipped}"]
        parts += [f"{name} {digest}" for name, digest in used.items()]
        if "mask" in self.family.picture_keys and example.mask is None:
            parts.append(f"drawn {self._config.seed} {index}")
        return ";".join([*parts, f"masked_loss {self._config.masked_loss}"])

    def _encode_pictures(self, new: dict[str, dict[str, Tensor]]) -> list[int]:
        wanted = {self._key(i, flipped): (i, flipped) for i in range(len(self)) for flipped in self._flips()}
        missing = [wanted[key] for key in self._processes.share(self._cache.missing(wanted))]
        missing.sort(key=lambda one: self._sizes[one[0]])
        chunks = [
            list(same)[start : start + _TOGETHER]
            for _, group in groupby(missing, key=lambda one: self._sizes[one[0]])
            for same in [list(group)]
            for start in range(0, len(same), _TOGETHER)
        ]
        broken: list[int] = []
        for chunk in self._shown(chunks, "encoding pictures"):
            try:
                entries = self._entries(chunk)
            except ValueError:
                if not self._config.skip_broken:
                    raise
                chunk, entries = self._sound(chunk, broken)
            self._keep({self._key(*one): entry for one, entry in zip(chunk, entries, strict=True)}, new)
        if broken:
            names = ", ".join(str(self.examples[i].image) for i in sorted(set(broken)))
            warnings.warn(f"pictures that cannot be decoded are left out: {names}", stacklevel=4)
        return broken

    def _sound(
        self, chunk: Sequence[tuple[int, bool]], broken: list[int]
    ) -> tuple[list[tuple[int, bool]], list[dict[str, Tensor]]]:
        """Those of the pictures that can be decoded, and their entries; the others join ``broken``."""
        sound, entries = [], []
        for one in chunk:
            try:
                entries += self._entries([one])
                sound.append(one)
            except ValueError:
                broken.append(one[0])
        return sound, entries

    def _encode_captions(self, new: dict[str, dict[str, Tensor]]) -> None:
        """Encodes captions that never change ahead of their use, as far as there is room for them."""
        captions = list(dict.fromkeys(self._plain(example.caption) for example in self.examples))
        if not self._fixed or not (self._lasting or len(captions) <= _CAPTIONS_IN_MEMORY):
            return
        keys = {self.text.key(caption): caption for caption in captions}
        missing = [keys[key] for key in self._processes.share(self._cache.missing(keys))]
        chunks = [missing[i : i + _CAPTIONS_TOGETHER] for i in range(0, len(missing), _CAPTIONS_TOGETHER)]
        for chunk in self._shown(chunks, "encoding captions"):
            self._keep({self.text.key(c): entry for c, entry in self.text.encode(chunk).items()}, new)

    def _keep(self, entries: dict[str, dict[str, Tensor]], new: dict[str, dict[str, Tensor]]) -> None:
        self._cache.put_all(entries)
        if not self._lasting and self._processes.count > 1:
            new.update(entries)

    def _entries(self, some: Sequence[tuple[int, bool]]) -> list[dict[str, Tensor]]:
        """What is kept of pictures of one size, each as it is or mirrored."""
        pictures = [read_picture(self.examples[i].image, self._sizes[i]) for i, _ in some]
        pixels = torch.stack(
            [_turned(pixels_of(p.image), flipped) for p, (_, flipped) in zip(pictures, some, strict=True)]
        )
        means, deviations = self.family.posterior(pixels)
        entries = []
        for n, (i, flipped) in enumerate(some):
            entry = {"latents": means[n]}
            if self._lasting or self._config.latent_sampling != "deterministic":
                entry["deviation"] = deviations[n]
            entry |= self.family.of_picture(pictures[n].original_size, pictures[n].crop, self._sizes[i])
            entry |= self._beside(i, flipped, pixels[n])
            if self._config.masked_loss:
                entry["loss_mask"] = self._loss_mask(i, flipped, means.shape[-2:])
            entries.append({key: value.cpu() for key, value in entry.items()})
        return entries

    def _beside(self, index: int, flipped: bool, pixels: Tensor) -> dict[str, Tensor]:
        """What inpainting and editing models see beside the latents."""
        example, size = self.examples[index], self._sizes[index]
        if "source_latents" in self.family.picture_keys:
            assert example.source is not None
            source = _turned(pixels_of(read_picture(example.source, size).image), flipped)
            return {"source_latents": self.family.source_latents(source[None])[0]}
        if "mask" not in self.family.picture_keys:
            return {}
        if example.mask is None:
            painted = _drawn_mask(size, generator_of(self._config.seed, "mask", index))
        else:
            painted = (_turned(example.weights(size), flipped) >= 0.5).float()
        mean, _ = self.family.posterior((pixels * (painted < 0.5))[None])
        return {"mask": F.interpolate(painted[None], mean.shape[-2:])[0], "masked_latents": mean[0]}

    def _loss_mask(self, index: int, flipped: bool, size: Sequence[int]) -> Tensor:
        """How much each latent counts, [1, h, w]."""
        example = self.examples[index]
        weights = _turned(example.weights(self._sizes[index]), flipped)
        if not weights.any():
            raise ValueError(f"the mask of {example.image} is black all over; nothing of it would be trained on")
        return F.interpolate(weights[None], tuple(size), mode="area")[0]

    def _shown(self, chunks: list[Any], what: str) -> Iterable[Any]:
        """The chunks, with a bar on a terminal where there are many."""
        quiet = not self._config.progress or not self._processes.main or len(chunks) < 2 or None
        return tqdm(chunks, desc=what, disable=quiet, leave=False)


def _turned(pixels: Tensor, flipped: bool) -> Tensor:
    return pixels.flip(-1) if flipped else pixels


def _chance(generator: Generator) -> float:
    return torch.rand((), generator=generator).item()


def _drawn_mask(size: Size, generator: Generator) -> Tensor:
    """What is to be painted, [1, height, width]: a rectangle, or everything for one picture in four, as such models
    were trained."""
    width, height = size
    if _chance(generator) < 0.25:
        return torch.ones(1, height, width)
    mask = torch.zeros(1, height, width)
    spans = []
    for side in (height, width):
        length = max(1, round(side * (0.1 + 0.8 * _chance(generator))))
        start = int((side - length) * _chance(generator))
        spans.append(slice(start, start + length))
    mask[0, spans[0], spans[1]] = 1
    return mask
