"""ComfyUI's own modules, as doubles."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

from tests.integrations.patched_unet import ModelPatcher, calculate_weight


def load_lora_for_models(
    model: ModelPatcher, clip: None, lora: dict[str, Tensor], strength: float, strength_clip: float
) -> tuple[ModelPatcher, None]:
    """What ComfyUI's LoRA loader calls: kohya's keys, ``lora_unet_`` and a layer's path with underscores."""
    patches = {}
    for key in model.model.state_dict():
        layer = f"lora_unet_{key.removeprefix('diffusion_model.').removesuffix('.weight').replace('.', '_')}"
        if f"{layer}.alpha" in lora:
            up, down = lora[f"{layer}.lora_up.weight"], lora[f"{layer}.lora_down.weight"]
            patches[key] = "lora", (up, down, lora[f"{layer}.alpha"].item())
    clone = model.clone()
    clone.add_patches(patches, strength)
    return clone, clip


class HookScope(Enum):
    """Conditionings that a hook acts on: all of a sampling, or those that have it."""

    AllConditioning = "all_conditioning"
    HookedOnly = "hooked_only"


class TransformerOptionsHook:
    """Options of the model for the conditionings in its scope."""

    def __init__(self, transformers_dict: dict[str, Any], hook_scope: HookScope = HookScope.AllConditioning):
        self.transformers_dict = transformers_dict
        self.hook_scope = hook_scope


class HookGroup:
    """Hooks in their order."""

    def __init__(self) -> None:
        self.hooks: list[TransformerOptionsHook] = []

    def add(self, hook: TransformerOptionsHook) -> None:
        self.hooks.append(hook)

    def clone(self) -> HookGroup:
        other = HookGroup()
        other.hooks = list(self.hooks)
        return other


@pytest.fixture
def comfy(monkeypatch, tmp_path) -> Path:
    """ComfyUI's modules, with ``hypernetworks`` and ``output`` in the folder that is returned."""
    (tmp_path / "hypernetworks").mkdir()

    def module(name: str, **content: Any) -> None:
        made = ModuleType(name)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, made)

    def path_of(kind: str, name: str) -> str | None:
        path = tmp_path / kind / name
        return str(path) if path.is_file() else None

    def save_path(prefix: str, output: str) -> tuple[str, str, int, str, str]:
        folder = Path(output, prefix).parent
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder), Path(prefix).name, 1, Path(prefix).parent.name, prefix

    module("comfy")
    module("comfy.sd", load_lora_for_models=load_lora_for_models)
    module("comfy.lora", calculate_weight=calculate_weight)
    module("comfy.hooks", EnumHookScope=HookScope, HookGroup=HookGroup, TransformerOptionsHook=TransformerOptionsHook)
    module(
        "folder_paths",
        get_filename_list=lambda kind: sorted(path.name for path in (tmp_path / kind).iterdir()),
        get_full_path=path_of,
        get_output_directory=lambda: str(tmp_path / "output"),
        get_save_image_path=save_path,
    )
    return tmp_path
