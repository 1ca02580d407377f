"""Safetensors files of networks, weight hypernetworks and generated weights: bytes, headers and tensors, spoilt."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import safetensors.torch
import torch

import hnkernels as hn
from hnkernels import CheckpointError
from hnkernels.checkpoint.safetensors_format import to_bytes
from tests.fuzz.campaign import Target
from tests.fuzz.model import Model
from tests.fuzz.mutations import odd_text, packed, spoilt_bytes, spoilt_text, spoilt_value
from tests.fuzz.torch_files import FOLDER, check_net, read, written

_PIECES = (
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "null",
    "true",
    "1e999",
    "NaN",
    "-1",
    '"version": 2',
    '"kind": "x"',
    "[" * 2000,
)

_MOST = 2**16  # elements: an expanded tensor would be written out


def _saved(*things: Any) -> tuple[bytes, ...]:
    path = FOLDER / "valid.safetensors"
    files = []
    for thing in things:
        hn.save_hypernetwork(thing, path) if isinstance(thing, hn.Hypernetwork) else thing.save(path)
        files.append(path.read_bytes())
    return tuple(files)


@cache
def _networks() -> tuple[bytes, ...]:
    torch.manual_seed(0)
    return _saved(
        hn.Hypernetwork((4,)),
        hn.Hypernetwork((4, 10), (1, 1.5, 2, 1), "prelu", True, (0, 0.1, 0.2, 0)).half(),
        hn.Hypernetwork((6,), activation=None).bfloat16(),
        hn.Hypernetwork((4,), activation="mish", init="identity").double(),
    )


@cache
def _generators() -> tuple[bytes, ...]:
    torch.manual_seed(0)
    options: dict[str, Any] = {"embedding_dim": 4, "hidden_dim": 8, "rank": 2, "model": Model(), "tasks": 2}
    return _saved(
        hn.WeightHypernetwork("attn2", styles=("ink", "oil"), **options),
        hn.WeightHypernetwork(["down.v", "mid.k"], head="dense", pooling="mean", **options).half(),
    )


@cache
def _weights() -> tuple[bytes, ...]:
    net = hn.WeightHypernetwork(["attn1.q", "mid.k"], 4, 8, 2, model=Model())
    plain = net.generate_weights(torch.randn(2, 4)).detach()
    return _saved(plain, plain.scaled(0.5).with_index(torch.tensor([0, 1, 1])))


def _draw(files: Callable[[], tuple[bytes, ...]]) -> Callable[[Random], bytes]:
    def draw(random: Random) -> bytes:
        others = (*_networks(), *_generators(), *_weights())
        data = random.choice(others if random.random() < 0.05 else files())
        match random.randrange(8):
            case 0:
                return spoilt_bytes(data, random, random.choice(others))
            case 1 | 2:  # of the header, which is then as long as it says
                length = int.from_bytes(data[:8], "little")
                header = spoilt_bytes(data[8 : 8 + length], random)
                return packed(len(header), 8) + header + data[8 + length :]
            case 3:
                length = int.from_bytes(data[:8], "little")
                header = json.dumps(spoilt_value(json.loads(data[8 : 8 + length]), random, tensors=False)).encode()
                return packed(len(header), 8) + header + data[8 + length :]
        return _spoilt_content(data, random)

    return draw


def _spoilt_content(data: bytes, random: Random) -> bytes:
    """A sound file of other JSON, or of other tensors."""
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])["__metadata__"]["hnkernels"]
    tensors = safetensors.torch.load(data)
    change = random.random()
    if change < 0.6:
        content = json.loads(entry)
        for _ in range(random.choice((1, 1, 2))):
            content = spoilt_value(content, random, tensors=False)
        entry = json.dumps(content)
    elif change < 0.7:
        entry = spoilt_text(entry, random, _PIECES)
    if change > 0.55:
        key = random.choice(list(tensors))
        other = random.choice((odd_text(random), key + "x", key.replace("4", "5"), "index", "scale.x", *tensors))
        match random.randrange(4):
            case 0:
                tensors[other] = tensors.pop(key)
            case 1:
                del tensors[key]
            case _:
                tensors[key] = spoilt_value(tensors[key], random)
    tensors = {k: t for k, t in tensors.items() if not isinstance(t, torch.Tensor) or t.numel() < _MOST}
    try:
        return to_bytes({"format": "pt", "hnkernels": entry}, tensors)
    except Exception:  # not everything can be saved
        return data[: random.randrange(len(data))]


def _check_generator(_: Any, net: hn.WeightHypernetwork) -> None:
    with torch.no_grad():
        weights = net.generate_weights(
            torch.zeros(1, net.encoder.config["embedding_dim"], dtype=net.encoder.style_table.dtype)
        )
    assert weights.sets == 1
    assert weights.layers == net.layers


def _check_weights(_: Any, weights: hn.GeneratedWeights) -> None:
    for layer in weights.layers:
        a, b = weights.factors(layer.name)
        assert a.isfinite().all()
        assert b.isfinite().all()
    assert weights.index is None or bool((weights.index < weights.sets).all())


SAFETENSORS = Target(_draw(_networks), read, (CheckpointError,), written("case.safetensors"), check_net)
NETWORK = Target(
    _draw(_generators), hn.WeightHypernetwork.load, (CheckpointError,), written("network.safetensors"), _check_generator
)
WEIGHTS = Target(
    _draw(_weights), hn.GeneratedWeights.load, (CheckpointError,), written("weights.safetensors"), _check_weights
)
