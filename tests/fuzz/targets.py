"""The names of the targets, each loaded when it is asked for: some need packages that need not be there."""

from __future__ import annotations

import importlib

from tests.fuzz.campaign import Target

_HOME = {
    "pt": "torch_files.PT",
    "optim": "torch_files.OPTIM",
    "safetensors": "safetensors_files.SAFETENSORS",
    "network": "safetensors_files.NETWORK",
    "weights": "safetensors_files.WEIGHTS",
    "prompt": "texts.PROMPT",
    "schedule": "texts.SCHEDULE",
    "folder": "folders.FOLDER",
    "config": "settings.CONFIG",
    "training": "settings.TRAINING",
    "structure": "settings.STRUCTURE",
    "strength": "strengths.STRENGTH",
    "hyper": "operations.HYPER",
    "lowrank": "operations.LOWRANK",
}

NAMES = tuple(_HOME)


def target(name: str) -> Target:
    """The target of this name."""
    module, attribute = _HOME[name].split(".")
    return getattr(importlib.import_module(f"tests.fuzz.{module}"), attribute)
