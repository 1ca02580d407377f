"""A web UI's interface to extensions, AUTOMATIC1111's or Forge's, and pictures drawn as its main loop does it."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.integrations.patched_unet import ModelPatcher, make_patcher, sample
from tests.models import TEXT_WIDTH, TOKENS

STEPS = 4


class Component:
    """Any part of a page."""

    def __init__(self, *args: Any, **options: Any):
        self.args, self.options = args, options

    def __enter__(self) -> Component:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def click(self, function: Any, inputs: list[Any], outputs: list[Any]) -> None:
        self.clicked = function, inputs, outputs


class OptionInfo:
    def __init__(self, default: Any = None, label: str = "", onchange: Any = None):
        self.default, self.label, self.onchange = default, label, onchange

    def info(self, text: str) -> OptionInfo:
        return self


class Options:
    """Settings: values that were set, or defaults."""

    def __init__(self, templates: dict[str, OptionInfo]):
        self.templates, self.data = templates, {}

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["data"]:
            return self.data[name]
        return self.templates[name].default

    def set(self, name: str, value: Any) -> None:
        self.data[name] = value
        if self.templates[name].onchange is not None:
            self.templates[name].onchange()


class Params:
    def __init__(self, items: list[Any]):
        self.items = items


class ExtraNetwork:
    def __init__(self, name: str):
        self.name = name


class OwnNetwork(ExtraNetwork):
    """The web UI's own class for hypernetworks; notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__("hypernet")
        self.asked: list[list[Any]] = []

    def activate(self, p: Any, params_list: list[Params]) -> None:
        self.asked.append([params.items for params in params_list])

    def deactivate(self, p: Any) -> None:
        pass


class ForgePatcher(ModelPatcher):
    """Forge's patcher: weights have names, by which it knows whether they are on the model."""

    def clone(self) -> ForgePatcher:
        other = super().clone()
        other.__class__ = ForgePatcher
        other.names = list(getattr(self, "names", []))
        return other

    def add_patches(self, *, filename: str, patches: dict[str, Any], strength_patch: float = 1.0) -> list[str]:
        self.names.append(filename)
        return super().add_patches(patches, strength_patch)


class Objects:
    def __init__(self, unet: Any):
        self.unet = unet

    def shallow_copy(self) -> Objects:
        return Objects(self.unet)


class WebUI:
    """The web UI, started; ``hypernetworks`` is its folder of them.

    Args:
        kind: ``"A1111"`` or ``"Forge"``.
        folder: where it is.
    """

    def __init__(self, kind: str, folder: Path):
        self.kind, self.hypernetworks = kind, folder / "hypernetworks"
        self.hypernetworks.mkdir()
        self.patcher = make_patcher()
        self.unet = self.patcher.model.diffusion_model
        if kind == "Forge":
            self.patcher.__class__ = ForgePatcher
            self.patcher.names = []
            self.model: Any = SimpleNamespace(forge_objects_original=Objects(self.patcher), forge_objects=None)
        else:
            self.model = SimpleNamespace(model=SimpleNamespace(diffusion_model=self.unet))
        self.callbacks: dict[str, list[Any]] = {}
        self.registry: dict[str, Any] = {}
        self.templates = {
            "sd_hypernetwork": OptionInfo("None"),
            "extra_networks_default_multiplier": OptionInfo(1.0),
        }
        self.opts = Options(self.templates)
        self.loaded: list[Any] = []
        self.grid = grid = SimpleNamespace(axis_options=[], AxisOption=axis_option)
        self.modules = self._modules(folder, grid)

    def _modules(self, folder: Path, grid: Any) -> dict[str, ModuleType]:
        def on(name: str) -> Any:
            return lambda function: self.callbacks.setdefault(name, []).append(function)

        content: dict[str, dict[str, Any]] = {
            "modules": {},
            "modules.paths": {"data_path": str(folder)},
            "modules.shared": {
                "opts": self.opts,
                "OptionInfo": OptionInfo,
                "options_section": lambda section, options: options,
                "options_templates": self.templates,
                "cmd_opts": SimpleNamespace(hypernetwork_dir=str(self.hypernetworks)),
                "loaded_hypernetworks": self.loaded,
                "sd_model": self.model,
            },
            "modules.script_callbacks": {
                "CFGDenoiserParams": SimpleNamespace,
                **{f"on_{name}": on(name) for name in ("before_ui", "cfg_denoiser", "ui_tabs")},
            },
            "modules.scripts": {
                "Script": type("Script", (), {"elem_id": lambda self, name: name}),
                "AlwaysVisible": object(),
                "scripts_data": [
                    SimpleNamespace(module=grid, script_class=type("Script", (), {"__module__": "xyz_grid.py"}))
                ],
            },
            "modules.extra_networks": {
                "ExtraNetwork": ExtraNetwork,
                "extra_network_registry": self.registry,
                "register_extra_network": lambda network: self.registry.update({network.name: network}),
            },
            "modules.sd_models": {"checkpoints_list": {}},
            "modules.shared_items": {"reload_hypernetworks": lambda: None},
            "gradio": {
                name: type(name, (Component,), {})
                for name in ("Blocks", "Accordion", "Row", "Column", "HTML", "Slider", "Textbox", "Dropdown", "Number")
            },
        }
        content["gradio"]["Button"] = type("Button", (Component,), {})
        if self.kind == "Forge":
            content |= {"backend": {}, "backend.patcher": {}}
            content["backend.patcher.lora"] = {"load_lora": load_lora, "model_lora_keys_unet": lora_keys}
        made = {name: ModuleType(name) for name in content}
        for name, values in content.items():
            made[name].__dict__.update(values)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(made[parent], child, made[name])
        return made

    def start(self) -> None:
        """Loads the extension's script, and makes the page, as the web UI does when it starts and when it reloads."""
        self.callbacks.clear()
        extension = importlib.import_module("hnkernels.integrations.webui")
        extension.register()
        self.own = OwnNetwork()
        self.registry.clear()
        self.registry["hypernet"] = self.own
        for function in self.callbacks["before_ui"]:
            function()
        self.script = extension.HypernetworkScript()
        self.controls = self.script.ui(False)

    def draw(self, prompt: str, *panel: Any, **fields: Any) -> tuple[Any, list[Tensor]]:
        """A picture, as the main loop draws it.

        Args:
            prompt: its prompt.
            panel: the values of the extension's panel, those after the last as they are at first.
            fields: what a grid of pictures sets; its cells share one ``extra_generation_params``.

        Returns:
            The picture's processing object, and what the UNet gave at every step.
        """
        values = [*panel, *(1, "", 0, 1)[len(panel) :]]
        fields = {"extra_generation_params": {}, "comments": [], **fields}
        p = SimpleNamespace(sd_model=self.model, all_prompts=[prompt], **fields)
        p.comment = p.comments.append
        p.errors = []

        @contextmanager
        def reported() -> Iterator[None]:
            try:
                yield
            except (ValueError, RuntimeError) as error:  # the web UI prints it, and goes on
                p.errors.append(error)

        with reported():
            self.script.process(p, *values)
        tags = [Params(found.split(":")) for found in re.findall(r"<hypernet:([^>]+)>", prompt)]
        if self.kind == "Forge":
            self.model.forge_objects = self.model.forge_objects_original.shallow_copy()
        with reported():
            self.registry["hypernet"].activate(p, tags)
        if self.kind == "Forge":
            with reported():
                self.script.process_before_every_sampling(p, *values, x=None)
        outputs = [self._step(step) for step in range(STEPS)]
        if tags:
            self.registry["hypernet"].deactivate(p)
        self.script.postprocess(p, None, *values)
        return p, outputs

    def _step(self, step: int) -> Tensor:
        for function in self.callbacks.get("cfg_denoiser", []):
            function(SimpleNamespace(sampling_step=step, total_sampling_steps=STEPS))
        if self.kind == "Forge":
            return sample(self.model.forge_objects.unet, *self.inputs)
        with torch.no_grad():
            return self.unet(*self.inputs)

    inputs = (torch.randn(2, 4, 4, 4), torch.randn(2, TOKENS, TEXT_WIDTH))


def axis_option(label: str, kind: type, apply: Any, confirm: Any = None, choices: Any = None) -> SimpleNamespace:
    return SimpleNamespace(label=label, type=kind, apply=apply, confirm=confirm, choices=choices)


def lora_keys(model: nn.Module, keys: dict[str, str]) -> dict[str, str]:
    """kohya's names of a model's layers."""
    names = [key for key in model.state_dict() if key.endswith(".weight")]
    return keys | {f"lora_unet_{k.removeprefix('diffusion_model.')[:-7].replace('.', '_')}": k for k in names}


def load_lora(lora: dict[str, Tensor], keys: dict[str, str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Forge's patches of a LoRA, and what is left of it."""
    patches = {
        key: ("lora", (lora[f"{name}.lora_up.weight"], lora[f"{name}.lora_down.weight"], lora[f"{name}.alpha"].item()))
        for name, key in keys.items()
        if f"{name}.alpha" in lora
    }
    return patches, {}


def load_checked(file: Any, *args: Any, **options: Any) -> Any:
    """A1111's ``torch.load``: it reads all of an open file first, and goes on from there."""
    file.seek(0, 2)
    return torch.serialization.load(file, *args, **options)


@contextmanager
def running(kind: str, folder: Path) -> Iterator[WebUI]:
    """A web UI whose modules can be imported, with the extension in it."""
    webui = WebUI(kind, folder)
    ours = "hnkernels.integrations.webui"
    before = {name: sys.modules.get(name) for name in webui.modules}
    sys.modules.update(webui.modules)
    torch.load = load_checked if kind == "A1111" else torch.load
    try:
        webui.start()
        yield webui
    finally:
        torch.load = torch.serialization.load
        for name in [name for name in sys.modules if name == ours or name.startswith(f"{ours}.")]:
            del sys.modules[name]
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
