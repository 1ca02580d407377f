"""Stable Diffusion hypernetworks: files, fused layers, an adapter for existing models, training.

The public names load on first use, so that ``import hnkernels`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Adapter": "hnkernels.adapter",
    "AdapterError": "hnkernels.adapter",
    "Adapters": "hnkernels.adapter",
    "adapters": "hnkernels.adapter",
    "attach": "hnkernels.adapter",
    "average": "hnkernels.convert.mixing",
    "CheckpointError": "hnkernels.checkpoint",
    "DivergenceError": "hnkernels.training",
    "explain": "hnkernels.ops.explanation",
    "Explanation": "hnkernels.ops.explanation",
    "GeneratedWeights": "hnkernels.generator",
    "HNKernelsError": "hnkernels.errors",
    "hyper_context": "hnkernels.ops.hyper",
    "hyper_kv": "hnkernels.ops.hyper",
    "hyper_qkv": "hnkernels.ops.hyper",
    "Hypernetwork": "hnkernels.network.hypernetwork",
    "HypernetworkDecoder": "hnkernels.generator",
    "HypernetworkEncoder": "hnkernels.generator",
    "HypernetworkMLP": "hnkernels.network.mlp",
    "HypernetworkTrainer": "hnkernels.training",
    "InputError": "hnkernels.errors",
    "interpolate": "hnkernels.convert.mixing",
    "Launch": "hnkernels.triton.launch",
    "load_hypernetwork": "hnkernels.files",
    "LoraLayer": "hnkernels.convert.lora_export",
    "LoraReport": "hnkernels.convert.lora_export",
    "lowrank_add": "hnkernels.ops.lowrank",
    "lowrank_linear": "hnkernels.ops.lowrank",
    "lowrank_linears": "hnkernels.ops.lowrank",
    "merge": "hnkernels.convert.merging",
    "merge_state_dict": "hnkernels.convert.merging",
    "MLPConfig": "hnkernels.network.mlp",
    "parse_prompt": "hnkernels.prompt",
    "ParsedPrompt": "hnkernels.prompt",
    "PerRow": "hnkernels.adapter",
    "save_hypernetwork": "hnkernels.files",
    "TargetLayer": "hnkernels.generator.targets",
    "to_lora": "hnkernels.convert.lora_export",
    "train_hypernetwork": "hnkernels.training",
    "TrainingConfig": "hnkernels.training",
    "TrainingResult": "hnkernels.training",
    "WeightAdapter": "hnkernels.adapter",
    "WeightGenerator": "hnkernels.generator",
    "WeightHypernetwork": "hnkernels.generator",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from hnkernels.adapter import Adapter, AdapterError, Adapters, PerRow, WeightAdapter, adapters, attach
    from hnkernels.checkpoint import CheckpointError
    from hnkernels.convert.lora_export import LoraLayer, LoraReport, to_lora
    from hnkernels.convert.merging import merge, merge_state_dict
    from hnkernels.convert.mixing import average, interpolate
    from hnkernels.errors import HNKernelsError, InputError
    from hnkernels.files import load_hypernetwork, save_hypernetwork
    from hnkernels.generator import (
        GeneratedWeights,
        HypernetworkDecoder,
        HypernetworkEncoder,
        WeightGenerator,
        WeightHypernetwork,
    )
    from hnkernels.generator.targets import TargetLayer
    from hnkernels.network.hypernetwork import Hypernetwork
    from hnkernels.network.mlp import HypernetworkMLP, MLPConfig
    from hnkernels.ops.explanation import Explanation, explain
    from hnkernels.ops.hyper import hyper_context, hyper_kv, hyper_qkv
    from hnkernels.ops.lowrank import lowrank_add, lowrank_linear, lowrank_linears
    from hnkernels.prompt import ParsedPrompt, parse_prompt
    from hnkernels.training import (
        DivergenceError,
        HypernetworkTrainer,
        TrainingConfig,
        TrainingResult,
        train_hypernetwork,
    )
    from hnkernels.triton.launch import Launch


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hnkernels' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        message = f"hnkernels.{name} needs {error.name}; install it with: pip install 'hnkernels[train]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
