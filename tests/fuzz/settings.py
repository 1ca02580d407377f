"""Config files, settings of a training run, and structures of networks."""

from __future__ import annotations

import dataclasses
import json
from random import Random
from typing import Any

import torch

from hnkernels import Hypernetwork, TrainingConfig
from hnkernels.cli.training import read_config
from tests.fuzz.campaign import Target
from tests.fuzz.mutations import odd_value, spoilt_bytes, spoilt_text, spoilt_value
from tests.fuzz.torch_files import written

_TRAINING: dict[str, Any] = {
    "learning_rate": "1e-3:50, 1e-4",
    "batch_size": 2,
    "max_epochs": 3,
    "max_steps": None,
    "target_layers": ["attn1", "attn2"],
    "gradient_clip": 1.0,
    "gradient_clip_mode": "value",
    "mixed_precision": "bf16",
    "weight_decay": 0.01,
    "latent_sampling": "random",
    "caption_template": "[filewords], [name]",
    "shuffle_tags": True,
    "tag_dropout": 0.1,
    "resolution": 64,
    "seed": 3,
    "output_dir": "runs/x",
    "checkpoint_every": 10,
    "preview_every": 5,
    "preview_prompts": ["a castle"],
    "preview_guidance": 7.5,
    "progress": False,
}
_NETWORK: dict[str, Any] = {
    "sizes": [4, 10],
    "layer_structure": [1, 2, 1.5, 1],
    "activation": "relu",
    "layer_norm": True,
    "dropout_structure": [0, 0.3, 0.1, 0],
    "activate_output": False,
    "init": "identity",
    "allow_legacy_activations": False,
    "name": "style",
}
_PIECES = (
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"training"',
    '"network"',
    "null",
    "NaN",
    "Infinity",
    "1e999",
    "[" * 3000,
    "\\ud800",
)


def _config(random: Random) -> bytes:
    settings = {"training": _TRAINING, "network": _NETWORK}
    if random.random() < 0.5:
        return json.dumps(spoilt_value(settings, random, tensors=False)).encode()
    text = json.dumps({name: dict(random.sample(list(values.items()), 3)) for name, values in settings.items()})
    data = spoilt_text(text, random, _PIECES).encode("utf-8", "surrogatepass")
    return spoilt_bytes(data, random) if random.random() < 0.3 else data


def _check_config(_: bytes, settings: Any) -> None:
    assert settings.keys() == {"training", "network"}
    assert all(isinstance(key, str) for values in settings.values() for key in values)


CONFIG = Target(
    draw=_config, prepare=written("config.json"), run=read_config, check=_check_config, refusals=(ValueError,)
)


def _training(random: Random) -> Any:
    settings = dict(random.sample(list(_TRAINING.items()), random.randrange(1, len(_TRAINING))))
    for _ in range(random.choice((1, 1, 2))):
        settings = spoilt_value(settings, random)
    if isinstance(settings, dict) and random.random() < 0.2:
        settings[random.choice([field.name for field in dataclasses.fields(TrainingConfig)])] = odd_value(random)
    return settings


def _check_training(_: Any, config: TrainingConfig) -> None:
    """A config is made of plain values, and makes itself again."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    assert TrainingConfig.of(values) == config
    del values["preview_conditions"]
    for name in ("optimizer_args", "lr_scheduler_args", "learning_rate_factors"):
        json.dumps(values.pop(name), allow_nan=False)
    plain = (str, int, float, bool, type(None), tuple)
    assert all(type(value) in plain for value in values.values()), values


TRAINING = Target(draw=_training, run=TrainingConfig.of, check=_check_training, refusals=(ValueError,))


def _structure(random: Random) -> dict[str, Any]:
    options = dict(random.sample(list(_NETWORK.items()), random.randrange(1, len(_NETWORK))))
    options.setdefault("sizes", (4,))
    for _ in range(random.choice((0, 1, 1, 2))):
        options[random.choice(list(options))] = odd_value(random)
    key = random.choice(list(options))
    options[key] = spoilt_value(options[key], random)
    structure = [1, *(random.choice((0.1, 0.25, 0.5, 1, 1.3, 2, 3.0, 1e-9)) for _ in range(random.randrange(4))), 1]
    if random.random() < 0.4:
        options["layer_structure"] = structure
        options["dropout_structure"] = random.choice((None, [random.choice((0, 0.5, 0.999)) for _ in structure]))
    return options


def _build(options: dict[str, Any]) -> Hypernetwork:
    """The network without data: sizes may be large."""
    with torch.device("meta"):
        return Hypernetwork(**options)


def _check_structure(options: dict[str, Any], net: Hypernetwork) -> None:
    assert isinstance(net.provenance.name, str)
    if sum(p.numel() for p in net.parameters()) > 10**5:
        return
    net = Hypernetwork(**options)
    for width in net:
        for mlp in net[width]:
            y = mlp.eval()(torch.ones(1, 2, width))
            assert y.shape == (1, 2, width)
            assert bool(y.isfinite().all())


STRUCTURE = Target(draw=_structure, run=_build, check=_check_structure, refusals=(ValueError,))
