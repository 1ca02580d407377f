"""Captions as what a model takes of them, each encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hnkernels.training.data.cache import Cache
from hnkernels.training.families import Family, family_of

BYTES_AT_MOST = 2**30
"""Of embeddings in memory: shuffled captions are endless, and one has 236 KB with CLIP and 8 MB with T5, in fp32."""


class TextEncoder:
    """Captions → what the model takes of them (``Family.text_keys`` → [B, ...]).

    Captions longer than CLIP reads at once are several parts, and in a batch with them the others are followed by
    empty parts.

    Args:
        family: of the pipeline.
        clip_skip: see ``TrainingConfig``.
        cache: where encoded captions are kept for other runs, too.
        key: what is put before a caption there: the encoders and their settings.
    """

    def __init__(self, family: Family, clip_skip: int = 1, cache: Cache | None = None, key: str = ""):
        self.family, self._clip_skip = family, clip_skip
        self._cache, self._key = cache, key
        self._known: dict[str, dict[str, Tensor]] = {}
        self._bytes = 0

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        self._learn(captions)
        rows = [self._known[c] for c in captions]
        lengths = {len(row["encoder_hidden_states"]) for row in rows}
        if len(lengths) > 1:
            rows = [self._filled(row, max(lengths)) for row in rows]
        return {key: _stacked([row[key] for row in rows]) for key in rows[0]}

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """What a cache keeps of captions: caption → ``Family.text_keys`` → tensor, without a batch dimension."""
        encoded: dict[str, dict[str, Tensor]] = {}
        together = [caption for caption in captions if not self.family.encodes_alone(caption)]
        alone = [caption for caption in captions if self.family.encodes_alone(caption)]
        for some in [together, *([one] for one in alone)]:
            if some:
                texts = self.family.text(some, self._clip_skip)
                encoded.update((c, {key: t[i] for key, t in texts.items()}) for i, c in enumerate(some))
        return encoded

    def key(self, caption: str) -> str:
        """Under which a caption is in the cache."""
        return f"{self._key};{caption}"

    def _learn(self, captions: Sequence[str]) -> None:
        """Has all of these in memory."""
        new = [c for c in dict.fromkeys(captions) if c not in self._known]
        if self._bytes > BYTES_AT_MOST:
            self._known.clear()
            self._bytes, new = 0, list(dict.fromkeys(captions))
        if self._cache is not None:
            found = {c: entry for c in new if (entry := self._cache.get(self.key(c))) is not None}
            self._remember(found)
            new = [c for c in new if c not in found]
        if not new:
            return
        encoded = self.encode(new)
        self._remember(encoded)
        if self._cache is not None:
            self._cache.put_all({self.key(c): entry for c, entry in encoded.items()})

    def _remember(self, encoded: dict[str, dict[str, Tensor]]) -> None:
        self._known.update(encoded)
        self._bytes += sum(map(bytes_of, encoded.values()))

    def without_cache(self) -> None:
        """Keeps in memory what fits, and nothing elsewhere."""
        self._cache = None

    def _filled(self, row: dict[str, Tensor], length: int) -> dict[str, Tensor]:
        """A row whose embeddings are followed by those of no text."""
        own = row["encoder_hidden_states"]
        self._learn([""])
        empty = self._known[""]["encoder_hidden_states"].to(own)
        return {**row, "encoder_hidden_states": torch.cat([own, *[empty] * ((length - len(own)) // len(empty))])}


def bytes_of(entry: dict[str, Tensor]) -> int:
    """How large the tensors of a caption are."""
    return sum(tensor.nbytes for tensor in entry.values())


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """The rows as one tensor; what a cache has is on the CPU, and what has just been encoded where the encoder is."""
    device = next((row.device for row in rows if row.device.type != "cpu"), rows[0].device)
    return torch.stack([row.to(device) for row in rows])


def text_embedding(pipeline: Any, caption: str) -> Tensor:
    """The embedding of one caption, [1, tokens, d]."""
    return TextEncoder(family_of(pipeline))([caption])["encoder_hidden_states"]
