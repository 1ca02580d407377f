"""What tells the weights of a model from those of another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import torch
from torch import nn


def fingerprint_of(modules: Iterable[nn.Module | None]) -> str:
    """A hash of the settings and of all weights of some models, whatever device they are on."""
    digest = hashlib.blake2b(digest_size=16)
    for module in modules:
        config = getattr(module, "config", {})
        content = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        digest.update(f"{type(module).__name__} {json.dumps(content, sort_keys=True, default=str)};".encode())
        for name, tensor in sorted(module.state_dict().items() if module is not None else ()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
