"""Files as AUTOMATIC1111 writes them, and a model of its strict loader, built on ``reference`` alone."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reference import MLP

ENTRY = re.compile(r"archive/(data\.pkl|version|data/\d+)")
"""The zip entries that every A1111 release accepts; it refuses a file with any other."""


def pair(dim: int, **options: Any) -> tuple[MLP, MLP]:
    """Two reference MLPs with random weights."""
    return MLP(dim, **options), MLP(dim, **options)


def flat_dict(pairs: dict[int, tuple[MLP, MLP]], **metadata: Any) -> dict[Any, Any]:
    """The dict of a file: only the metadata that are given."""
    return {dim: (k.state_dict(), v.state_dict()) for dim, (k, v) in pairs.items()} | metadata


def write(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def plain_file(path: Path, dims: tuple[int, ...] = (4, 10), **metadata: Any) -> Path:
    """A valid [1, 2, 1] relu file."""
    described = {"activation_func": "relu", "activate_output": False, "step": 7, "name": "plain"} | metadata
    return write(path, flat_dict({dim: pair(dim, activation="relu") for dim in dims}, **described))


def strict_load(path: Path) -> tuple[dict[int, tuple[MLP, MLP]], dict[str, Any]]:
    """What A1111's loader makes of a file: nothing is guessed, every key must fit. Returns pairs and metadata."""
    with zipfile.ZipFile(path) as archive:
        assert all(ENTRY.fullmatch(name) for name in archive.namelist()), archive.namelist()
    content = torch.load(path, map_location="cpu", weights_only=True)
    structure = content.get("layer_structure", [1, 2, 1])
    dropout = content.get("dropout_structure")
    if dropout is None:
        rate = 0.3 if content.get("use_dropout", False) else 0.0
        penultimate = rate if content.get("last_layer_dropout", False) else 0.0
        dropout = [0.0, *[rate] * (len(structure) - 3), penultimate, 0.0][-len(structure) :]
    options = {
        "layer_structure": structure,
        "activation": content.get("activation_func"),
        "layer_norm": content.get("is_layer_norm", False),
        "dropout_structure": dropout,
        "activate_output": content.get("activate_output", True),
    }
    pairs = {}
    for dim, states in content.items():
        if type(dim) is int:
            pairs[dim] = pair(dim, **options)
            for mlp, state in zip(pairs[dim], states, strict=True):
                mlp.load_state_dict(state, strict=True)
    return pairs, {key: value for key, value in content.items() if isinstance(key, str)}


@torch.no_grad()
def assert_same_function(mlp: nn.Module, expected: MLP, dim: int) -> None:
    """Both give the same result in float64 and eval mode; the order of the additions may differ, no more."""
    x = torch.randn(2, 5, dim, dtype=torch.float64)
    result, wanted = double_eval(mlp)(x), double_eval(expected)(x)
    torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-12)


def double_eval(module: nn.Module) -> nn.Module:
    return module.double().eval()


def tensors_of(content: dict[Any, Any]) -> dict[tuple[int, int, str], Tensor]:
    """Every weight of a file's dict."""
    return {
        (dim, stream, key): tensor
        for dim, states in content.items()
        if isinstance(dim, int)
        for stream, state in enumerate(states)
        for key, tensor in state.items()
    }
