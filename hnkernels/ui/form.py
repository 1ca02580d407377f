"""A form for the settings of a run, made from what the settings say of themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from hnkernels.errors import InputError
from hnkernels.training.settings import Setting, settings

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Basic": ("learning_rate", "batch_size", "max_steps", "max_epochs", "target_layers", "resolution"),
    "Progress and previews": (
        *("validation_split", "validate_every", "checkpoint_every", "preview_every", "preview_prompts"),
        *("preview_conditions", "preview_inference_steps", "preview_guidance", "trackers"),
    ),
    "Pictures": (
        *("bucketing", "bucket_step", "bucket_max_aspect", "random_flip", "latent_sampling", "masked_loss"),
        *("mask_data", "regularization_data", "prior_loss_weight", "skip_broken"),
    ),
    "Captions": (*("caption_template", "caption_dropout", "shuffle_tags", "tag_dropout", "keep_tags", "clip_skip"),),
    "Optimiser": (
        *("optimizer", "optimizer_args", "lr_scheduler", "lr_warmup_steps", "lr_scheduler_args"),
        *("learning_rate_factors", "weight_decay", "decay_biases_and_norms", "gradient_accumulation_steps"),
        *("gradient_clip", "gradient_clip_mode", "ema_decay"),
    ),
    "Objective": (
        *("loss_type", "huber_delta", "snr_gamma", "min_timestep", "max_timestep", "timestep_sampling"),
        *("noise_offset", "zero_terminal_snr"),
    ),
    "Machine": ("mixed_precision", "gradient_checkpointing", "seed"),
}
"""Where each setting stands, the most used first."""

ELSEWHERE = ("output_dir", "cache_dir", "progress")
"""Settings that are not the form's: the home decides them."""

NAMES = tuple(name for names in GROUPS.values() for name in names)
"""All settings of the form, in its order."""


def field(name: str, value: Any, folders: Sequence[str]) -> gr.components.Component:
    """The component of a setting.

    Args:
        name: the setting's.
        value: what it shows, see ``shown``.
        folders: names of the folders that a folder may be.
    """
    setting = settings()[name]
    about: dict[str, Any] = {"label": called(name), "info": _info(setting), "elem_id": f"setting-{name}"}
    if setting.kind == "switch":
        return gr.Checkbox(value, **about)
    if setting.kind == "choice":
        return gr.Dropdown(list(setting.choices), value=value, **about)
    if setting.kind == "choices":
        return gr.CheckboxGroup(list(setting.choices), value=value, **about)
    if setting.kind == "folder":
        return gr.Dropdown([("none", ""), *((each, each) for each in folders)], value="", **about)
    if setting.kind in ("integer", "number") and not setting.optional:  # Gradio takes an empty number for 0
        return gr.Number(value, **about)
    lines = 3 if setting.kind == "texts" else 1
    return gr.Textbox(value, **about, lines=lines, max_lines=12)


def called(name: str) -> str:
    """What the form calls a setting."""
    return name.replace("_", " ")


def marked(name: str, fault: str) -> Any:
    """An update of a setting's component that shows what is wrong with it, or if nothing is, what it does."""
    return gr.update(info=fault or _info(settings()[name]), elem_classes=["faulty"] if fault else [])


def shown(name: str, value: Any) -> Any:
    """A setting's value, as its component shows it."""
    kind = settings()[name].kind
    if kind == "object":
        return json.dumps(value) if value else ""
    if kind == "texts":
        return "\n".join(str(text) for text in value)
    if kind == "choices":
        return list(value)
    if kind in ("schedule", "text", "folder") or settings()[name].optional:
        return "" if value is None else str(value)
    return value


def entered(name: str, value: Any) -> Any:
    """What stands in a component, as the config takes it; what cannot be read stays as it is, for the config to refuse.

    Raises:
        ValueError: it should be JSON and is not.
    """
    setting = settings()[name]
    if setting.kind in ("integer", "number"):
        number = _number((value or "").strip()) if isinstance(value, str) else value
        if number == "" and setting.optional:
            return None
        return int(number) if isinstance(number, float) and number.is_integer() else number
    if setting.kind == "object":
        return _object(name, value)
    if setting.kind == "texts":
        return [line.strip() for line in (value or "").splitlines() if line.strip()]
    if setting.kind in ("text", "folder", "schedule"):
        text = (value or "").strip()
        if not text and setting.optional:
            return None
        return _number(text) if setting.kind == "schedule" else text
    return value


def _object(name: str, value: Any) -> Any:
    if not (value or "").strip():
        return {}
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{name} must be JSON such as {{"name": 1}}: {error}') from None


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _info(setting: Setting) -> str:
    limits = []
    if setting.low is not None:
        limits.append(f"≥ {setting.low:g}")
    if setting.high is not None:
        limits.append(f"≤ {setting.high:g}")
    if setting.optional:
        limits.append("may be empty")
    if setting.kind == "texts":
        limits.append("one per line")
    if setting.kind == "object":
        limits.append("JSON")
    text = setting.help.replace("``", "").rstrip(".")
    text = text[:1].upper() + text[1:]
    return f"{text} ({', '.join(limits)})." if limits else f"{text}."
