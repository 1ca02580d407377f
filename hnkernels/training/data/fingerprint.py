"""What tells the weights of a model from those of another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hnkernels.errors import InputError

_NOT_OF_THE_MODEL = ("transformers_version", "dtype", "torch_dtype")  # of its file, or said by the weights


def fingerprint_of(parts: Iterable[Any]) -> str:
    """A hash of the settings and of all weights of models, whatever device they are on, and of tokenisers.

    It does not depend on where they were loaded from.

    Args:
        parts: modules, tokenisers and ``None`` for what is not there.

    Raises:
        ValueError: weights are not in memory, as with offloading to disk.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{type(part).__name__};".encode())
        if isinstance(part, nn.Module):
            _feed_module(digest, part)
        elif part is not None:
            _feed(digest, [part.model_max_length, part.padding_side, part.special_tokens_map, part.get_vocab()])
    return digest.hexdigest()


def _feed_module(digest: Any, module: nn.Module) -> None:
    config: Any = getattr(module, "config", {})
    content = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    _feed(digest, {k: v for k, v in content.items() if not k.startswith("_") and k not in _NOT_OF_THE_MODEL})
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_meta:
            raise InputError(
                f"the weights of {type(module).__name__} are not in memory, so that the cache cannot tell it from "
                "others; train without cache_dir, or with enable_model_cpu_offload in the place of the sequential one"
            )
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _feed(digest: Any, value: Any) -> None:
    digest.update(f"{json.dumps(value, sort_keys=True, default=str)};".encode())
