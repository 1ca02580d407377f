"""CLIP's text embeddings for captions of any length, as the web UIs make them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LOOK_BACK = 20
"""Tokens by which a part of a long caption may end earlier, at a comma."""


def tokens_of(tokenizer: Any, caption: str) -> list[int]:
    """The caption's tokens, without start and end."""
    ids: list[int] = tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False).input_ids
    return ids


def is_long(tokenizer: Any, caption: str) -> bool:
    """Whether a caption has more tokens than CLIP reads at once."""
    return len(tokens_of(tokenizer, caption)) > tokenizer.model_max_length - 2


def parts_of(tokenizer: Any, caption: str) -> Tensor:
    """The caption in parts that CLIP reads one at a time, each with start and end, filled up. Shape: [parts, tokens].

    A part ends at a comma if there is one among its last 20 tokens.
    """
    ids, comma = tokens_of(tokenizer, caption), _comma(tokenizer)
    room = tokenizer.model_max_length - 2
    parts: list[list[int]] = []
    while ids or not parts:
        end = len(ids)
        if end > room:
            commas = [i for i in range(max(0, room - _LOOK_BACK), room) if ids[i] == comma]
            end = commas[-1] + 1 if commas else room
        filling = [tokenizer.pad_token_id] * (room - end + 1)
        parts.append([tokenizer.bos_token_id, *ids[:end], tokenizer.eos_token_id, *filling][: room + 2])
        ids = ids[end:]
    return torch.tensor(parts)


def _comma(tokenizer: Any) -> int | None:
    ids = tokens_of(tokenizer, ",")
    return ids[0] if len(ids) == 1 else None


def hidden(encoder: Any, ids: Tensor, clip_skip: int, normed: bool) -> Tensor:
    """A hidden layer of CLIP's text encoder, counted from the end, [B, tokens, d].

    Args:
        encoder: a ``CLIPTextModel`` or ``CLIPTextModelWithProjection`` of transformers.
        ids: [B, tokens].
        clip_skip: 1 is the last layer, and the number of layers the first.
        normed: whether the final LayerNorm follows.
    """
    states = encoder(ids.to(encoder.device), output_hidden_states=True).hidden_states
    state: Tensor = states[-clip_skip]
    inner = getattr(encoder, "text_model", encoder)  # which CLIPTextModel of transformers 5 is itself
    return inner.final_layer_norm(state) if normed else state
