"""Pictures and captions, encoded once by the pipeline's own autoencoder and text encoders."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from tqdm.auto import tqdm

from hnkernels.errors import InputError
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.buckets import Buckets, Size
from hnkernels.training.data.cache import Cache, DiskCache, MemoryCache
from hnkernels.training.data.captions import CaptionMaker
from hnkernels.training.data.contents import some as few
from hnkernels.training.data.decoded import Decoded, decode, drawn_mask
from hnkernels.training.data.example import Example
from hnkernels.training.data.fingerprint import fingerprint_of
from hnkernels.training.data.pictures import Source
from hnkernels.training.data.text_encoder import BYTES_AT_MOST, TextEncoder, bytes_of
from hnkernels.training.families import Family
from hnkernels.training.families.family import bucket_step_of, resolution_of
from hnkernels.training.objective import stacked
from hnkernels.training.processes import ALONE, Processes
from hnkernels.training.sampler import generator_of

_TOGETHER = 8  # pictures of one size that are encoded at once
_CAPTIONS_TOGETHER = 64


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
        drawn = config.shuffle_tags, config.tag_dropout, config.caption_dropout, config.keep_tags
        self._captions = CaptionMaker(config.caption_template, name, *drawn)
        self._plain = CaptionMaker(config.caption_template, name)
        self._captions_of_prior, self._plain_of_prior = (
            CaptionMaker("[filewords]", name, *drawn),
            CaptionMaker("[filewords]", name),
        )
        self._cache = cache or (MemoryCache() if config.cache_dir is None else DiskCache(config.cache_dir))
        self._lasting = isinstance(self._cache, DiskCache)
        self._hashes: dict[int, str] = {}
        self._sizes = self._choose_sizes()
        if prior:
            self._check_prior()
        self._picture_key = text_key = ""
        if self._lasting:
            kind, pipeline = type(family).__name__, family.pipeline
            self._picture_key = f"{kind} {fingerprint_of([pipeline.vae])}"
            text_key = f"{kind} {fingerprint_of(_parts_for_text(pipeline))} {config.clip_skip}"
        self._fixed_captions = self._choose_captions()
        self.text = TextEncoder(
            family, config.clip_skip, self._cache if self._fixed_captions else None, f"text {text_key}"
        )

    def __len__(self) -> int:
        return len(self.examples)

    def groups(self) -> list[Size]:
        """What examples must have in common to make a batch: their size in pixels."""
        return self._sizes

    def repeats(self) -> list[int]:
        """How often every example comes in an epoch."""
        return [example.repeats for example in self.examples]

    def content_hash(self, source: Source) -> str:
        """The hash of a picture of the examples, which is asked of the cache once."""
        # Pillow's images cannot be keys, and the examples keep what they hold alive.
        if (known := self._hashes.get(id(source))) is None:
            known = self._hashes[id(source)] = self._cache.content_hash(source)
        return known

    @torch.no_grad()
    def encode(self) -> list[int]:
        """Encodes what is not in the cache yet, every process its share; ``batch`` needs it.

        Returns:
            The examples whose pictures cannot be decoded, with ``skip_broken``: they have no batch.

        Raises:
            ValueError: a picture or its mask cannot be decoded (without ``skip_broken``), or latents are not finite.
        """
        new: dict[str, dict[str, Tensor]] = {}
        broken = self._encode_pictures(new)
        self._encode_captions(new)
        if not self._lasting and self._processes.count > 1:
            for entries in self._processes.all_of(new):
                self._cache.put_all(entries)
        everywhere = {i for part in self._processes.all_of(broken) for i in part}
        if everywhere.issuperset(range(self._first_prior)):
            raise InputError("no picture can be decoded, for the reason that the warning gives; give others")
        return sorted(everywhere)

    @torch.no_grad()
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
            maker = self._captions_of_prior if i >= self._first_prior else self._captions
            captions.append(maker(self.examples[i].caption, generator))
            dropout = self._config.caption_dropout
            if "source_latents" in row and dropout and _chance(generator) < dropout:
                row["source_latents"] = torch.zeros_like(row["source_latents"])
            rows.append(row)
        return self._together(indices, rows, captions)

    @torch.no_grad()
    def plain_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """The same with nothing drawn: the latents' means, whole captions in their order."""
        rows = [self._row(i, False) for i in indices]
        for row in rows:
            row.pop("deviation", None)
        return self._together(indices, rows, [self._plain_caption(i) for i in indices])

    def _plain_caption(self, index: int) -> str:
        maker = self._plain_of_prior if index >= self._first_prior else self._plain
        return maker(self.examples[index].caption)

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
            image = self.examples[index].image
            if self._lasting and self._cache.content_hash(image) != self.content_hash(image):
                raise InputError(f"{image} has changed since the run began; start the run again")
            (row,) = self._entries([(index, flipped)], [self._decoded(index, flipped)])
            self._cache.put(key, row)
        return row

    def _choose_captions(self) -> list[str]:
        """The captions that never change, to be encoded ahead of their use."""
        if self._config.shuffle_tags or self._config.tag_dropout:  # other captions are endless
            return []
        captions = dict.fromkeys(map(self._plain_caption, range(len(self))))
        if self._config.caption_dropout:
            captions[""] = None
        return list(captions)

    def _choose_sizes(self) -> list[Size]:
        """The size in pixels that each picture is trained at."""
        config, side = self._config, resolution_of(self.family, self._config.resolution)
        if not config.bucketing:
            return [(side, side)] * len(self.examples)
        buckets = Buckets(side, bucket_step_of(self.family, config.bucket_step), config.bucket_max_aspect)
        return [buckets.assign(*(e.size or self._cache.picture_size(e.image))) for e in self.examples]

    def _check_prior(self) -> None:
        """Says of which pictures there are none for prior preservation in the same batch.

        Raises:
            ValueError: it is so of all.
        """
        there = set(self._sizes[self._first_prior :])
        alone = [i for i in range(self._first_prior) if self._sizes[i] not in there]
        if len(alone) == self._first_prior:
            raise InputError(
                f"no picture of regularization_data has a size in common with the pictures ({_listed(there)} against "
                f"{_listed(self._sizes[i] for i in alone)}), so that none would be used; give pictures of other aspect "
                "ratios, or train without bucketing"
            )
        if alone:
            warnings.warn(
                f"no picture of regularization_data has the size of {len(alone)} pictures "
                f"({_listed(self._sizes[i] for i in alone)}), which are trained on without: "
                f"{few([str(self.examples[i].image) for i in alone])}",
                stacklevel=4,
            )

    def _flips(self) -> tuple[bool, ...]:
        return (False, True) if self._config.random_flip else (False,)

    def _key(self, index: int, flipped: bool) -> str:
        """Under which a picture's entry is in the cache: all that its content depends on."""
        if not self._lasting:
            return f"{index} {flipped}"
        example, width, height = self.examples[index], *self._sizes[index]
        keys, masked_loss = self.family.picture_keys, self._config.masked_loss
        parts = [self._picture_key, self.content_hash(example.image), f"{width}x{height}", f"{flipped}"]
        if example.mask is not None and ("mask" in keys or masked_loss):
            parts.append(f"mask {self.content_hash(example.mask)}")
        if example.source is not None and "source_latents" in keys:
            parts.append(f"source {self.content_hash(example.source)}")
        if example.mask is None and "mask" in keys:
            parts.append(f"drawn {self._config.seed} {index}")
        return ";".join([*parts, f"masked_loss {masked_loss}"])

    def _encode_pictures(self, new: dict[str, dict[str, Tensor]]) -> list[int]:
        wanted = {self._key(i, flipped): (i, flipped) for i in range(len(self)) for flipped in self._flips()}
        missing = [wanted[key] for key in self._share_of_missing(wanted)]
        missing.sort(key=lambda one: self._sizes[one[0]])
        chunks = [
            list(same)[start : start + _TOGETHER]
            for _, group in groupby(missing, key=lambda one: self._sizes[one[0]])
            for same in [list(group)]
            for start in range(0, len(same), _TOGETHER)
        ]
        broken: dict[str, ValueError] = {}
        for chunk in self._shown(chunks, "encoding pictures"):
            decoded: dict[tuple[int, bool], Decoded] = {}
            for one in chunk:
                try:
                    decoded[one] = self._decoded(*one)
                except ValueError as error:
                    if not self._config.skip_broken:
                        raise
                    broken[self._key(*one)] = error
            if decoded:
                entries = self._entries(list(decoded), list(decoded.values()))
                self._keep({self._key(*one): entry for one, entry in zip(decoded, entries, strict=True)}, new)
        if not broken:
            return []
        # Files of the same content have one key.
        found = [i for i in range(len(self)) if any(self._key(i, flipped) in broken for flipped in self._flips())]
        names = ", ".join(str(self.examples[i].image) for i in found)
        reason = next(iter(broken.values()))
        warnings.warn(f"pictures that cannot be decoded are left out: {names}; one of them: {reason}", stacklevel=4)
        return found

    def _share_of_missing(self, keys: Iterable[str]) -> list[str]:
        """What this process is to encode of these. All go by what the first one finds, for they fill the cache."""
        return self._processes.share(self._processes.all_of(self._cache.missing(keys))[0])

    def _encode_captions(self, new: dict[str, dict[str, Tensor]]) -> None:
        """Encodes captions that never change ahead of their use, if there is room for them."""
        captions = self._fixed_captions
        if not self._lasting and len(captions) > _CAPTIONS_TOGETHER:
            (one,) = self.text.encode(captions[:1]).values()
            if bytes_of(one) * len(captions) > BYTES_AT_MOST:
                self.text.without_cache()
                return
        keys = {self.text.key(caption): caption for caption in captions}
        missing = [keys[key] for key in self._share_of_missing(keys)]
        chunks = [missing[i : i + _CAPTIONS_TOGETHER] for i in range(0, len(missing), _CAPTIONS_TOGETHER)]
        for chunk in self._shown(chunks, "encoding captions"):
            self._keep({self.text.key(c): entry for c, entry in self.text.encode(chunk).items()}, new)

    def _keep(self, entries: dict[str, dict[str, Tensor]], new: dict[str, dict[str, Tensor]]) -> None:
        self._cache.put_all(entries)
        if not self._lasting and self._processes.count > 1:
            new.update(entries)

    def _decoded(self, index: int, flipped: bool) -> Decoded:
        example = self.examples[index]
        painted = "mask" in self.family.picture_keys and example.mask is not None
        edited = "source_latents" in self.family.picture_keys
        return decode(example, self._sizes[index], flipped, self._config.masked_loss or painted, edited)

    def _entries(self, some: Sequence[tuple[int, bool]], decoded: Sequence[Decoded]) -> list[dict[str, Tensor]]:
        """What is kept of pictures of one size, each as it is or mirrored."""
        means, deviations = self._posterior(torch.stack([one.pixels for one in decoded]), some)
        entries = []
        for n, ((i, _), one) in enumerate(zip(some, decoded, strict=True)):
            entry = {"latents": means[n]}
            if self._lasting or self._config.latent_sampling != "deterministic":
                entry["deviation"] = deviations[n]
            entry |= self.family.of_picture(one.original_size, one.crop, self._sizes[i])
            if "source_latents" in self.family.picture_keys:
                assert one.source is not None  # check_examples has seen to it
                entry["source_latents"] = self.family.source_latents(one.source[None])[0]
            if "mask" in self.family.picture_keys:
                entry |= self._painted(i, one)
            if self._config.masked_loss:
                assert one.weights is not None
                entry["loss_mask"] = F.interpolate(one.weights[None], means.shape[-2:], mode="area")[0]
            entries.append({key: value.cpu() for key, value in entry.items()})
        return entries

    def _posterior(self, pixels: Tensor, some: Sequence[tuple[int, bool]]) -> tuple[Tensor, Tensor]:
        """Mean and deviation of latents.

        Raises:
            ValueError: they are not finite, as those of some VAEs in half precision.
        """
        means, deviations = self.family.posterior(pixels)
        for mean, (i, _) in zip(means, some, strict=True):
            if not mean.isfinite().all():
                vae = self.family.pipeline.vae
                raise InputError(
                    f"the VAE's latents of {self.examples[i].image} in {str(vae.dtype).removeprefix('torch.')} are not "
                    "finite; load the VAE in float32"
                )
        return means, deviations

    def _painted(self, index: int, one: Decoded) -> dict[str, Tensor]:
        """What inpainting models see beside the latents: the mask, and the latents of the rest."""
        if self.examples[index].mask is None:
            painted = drawn_mask(self._sizes[index], generator_of(self._config.seed, "mask", index))
        else:
            assert one.weights is not None
            painted = (one.weights >= 0.5).float()
        (mean,), _ = self._posterior((one.pixels * (painted < 0.5))[None], [(index, False)])
        return {"mask": F.interpolate(painted[None], mean.shape[-2:])[0], "masked_latents": mean}

    def _shown(self, chunks: list[Any], what: str) -> Iterable[Any]:
        """The chunks, with a bar on a terminal where there are many."""
        quiet = not self._config.progress or not self._processes.main or len(chunks) < 2 or None
        return tqdm(chunks, desc=what, disable=quiet, leave=False)


def _chance(generator: Generator) -> float:
    return torch.rand((), generator=generator).item()


def _listed(sizes: Iterable[Size]) -> str:
    return few([f"{width} x {height}" for width, height in sorted(set(sizes))], 8)


def _parts_for_text(pipeline: Any) -> list[Any]:
    """All parts of a pipeline on which its embeddings of text depend."""
    return [
        part for name, part in sorted(pipeline.components.items()) if name.startswith(("text_encoder", "tokenizer"))
    ]
