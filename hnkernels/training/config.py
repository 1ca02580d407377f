"""What a training run is told."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from hnkernels.adapter.layers import TARGETS
from hnkernels.training.schedule import Schedule
from hnkernels.wording import shown

_CHOICES = {
    "mixed_precision": ("no", "fp16", "bf16"),
    "gradient_clip_mode": ("norm", "value"),
    "latent_sampling": ("once", "deterministic", "random"),
}
_AT_LEAST = {
    "batch_size": 1,
    "max_epochs": 1,
    "max_steps": 1,
    "gradient_accumulation_steps": 1,
    "resolution": 1,
    "seed": -(2**63),
    "checkpoint_every": 0,
    "preview_every": 0,
    "preview_inference_steps": 1,
}
_RANGES = {
    "weight_decay": (0, math.inf),
    "tag_dropout": (0, 1),
    "caption_dropout": (0, 1),
    "preview_guidance": (0, math.inf),
}
_SWITCHES = ("gradient_checkpointing", "shuffle_tags", "progress")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of ``HypernetworkTrainer``. Steps are optimiser steps throughout.

    Args:
        learning_rate: a number, or A1111's schedule notation ``"5e-5:100, 5e-6:1000, 1e-6"``.
        batch_size: examples per forward pass.
        max_epochs: passes over the data.
        target_layers: kinds of attention the network acts on: ``"attn1"``, ``"attn2"`` or both. A
            ``WeightHypernetwork`` has its own, which must be among these.
        max_steps: ends the run early; ``None`` for the epochs alone.
        gradient_accumulation_steps: forward passes per optimiser step.
        gradient_clip: largest gradient norm (or value), a number or a schedule, whose last value holds; ``None`` for
            no clipping. Applied to the unscaled gradient.
        gradient_clip_mode: ``"norm"`` or ``"value"``.
        mixed_precision: ``"no"``, ``"fp16"`` (with loss scaling) or ``"bf16"``.
        gradient_checkpointing: trade time for memory in the base model.
        weight_decay: of AdamW.
        latent_sampling: ``"once"`` draws every image's latent once, ``"deterministic"`` takes the mean, ``"random"``
            draws at every use.
        caption_template: ``[filewords]`` stands for the example's caption, ``[name]`` for the network's name.
        shuffle_tags: shuffles the comma-separated parts of a caption at every use.
        tag_dropout: probability of leaving out each of these parts.
        caption_dropout: probability of training on the empty caption, for classifier-free guidance.
        resolution: side of the training images in pixels; ``None`` for what the model was made for.
        seed: of everything random in the run.
        output_dir: where log, checkpoints, previews and the finished network go.
        checkpoint_every: steps between checkpoints; 0 for none but the last.
        preview_every: steps between previews; 0 for none.
        preview_prompts: what the previews show.
        preview_conditions: under which conditions, one per prompt; without them a ``WeightHypernetwork`` sees the
            prompts' text embeddings.
        preview_inference_steps, preview_guidance: how they are sampled.
        progress: a progress bar on stderr.

    Raises:
        ValueError: a value is outside what is said above.
    """

    learning_rate: float | str = 1e-5
    batch_size: int = 1
    max_epochs: int = 100
    target_layers: Sequence[str] = TARGETS
    max_steps: int | None = None
    gradient_accumulation_steps: int = 1
    gradient_clip: float | str | None = 1.0
    gradient_clip_mode: str = "norm"
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    weight_decay: float = 0.01
    latent_sampling: str = "once"
    caption_template: str = "[filewords]"
    shuffle_tags: bool = False
    tag_dropout: float = 0.0
    caption_dropout: float = 0.0
    resolution: int | None = None
    seed: int = 0
    output_dir: str = "runs/train"
    checkpoint_every: int = 500
    preview_every: int = 0
    preview_prompts: Sequence[str] = ()
    preview_conditions: Sequence[Any] = ()
    preview_inference_steps: int = 20
    preview_guidance: float = 7.5
    progress: bool = True

    def __post_init__(self):
        for name in ("target_layers", "preview_prompts"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        if not self.target_layers or not set(self.target_layers) <= set(TARGETS):
            raise ValueError(f"target_layers must be some of {', '.join(TARGETS)}, not {shown(self.target_layers)}")
        for name, accepted in _CHOICES.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, not {shown(getattr(self, name))}")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is None and name in ("max_steps", "resolution"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
                raise ValueError(f"{name} must be an integer >= {least}, not {shown(value)}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not low <= value <= min(high, sys.float_info.max):
                within = f"in [{low}, {high}]" if high < math.inf else f">= {low}"
                raise ValueError(f"{name} must be a number {within}, not {shown(value)}")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {shown(getattr(self, name))}")
        if not isinstance(self.caption_template, str):
            raise ValueError(f"caption_template must be a text, not {shown(self.caption_template)}")
        if not isinstance(self.output_dir, (str, os.PathLike)) or not os.fspath(self.output_dir):
            raise ValueError(f"output_dir must be the path of a folder, not {shown(self.output_dir)}")
        object.__setattr__(self, "output_dir", os.fspath(self.output_dir))
        _check_schedule("learning_rate", self.learning_rate)
        if self.gradient_clip is not None:
            _check_schedule("gradient_clip", self.gradient_clip)
        for name in ("learning_rate", "gradient_clip", *_RANGES):
            if isinstance(getattr(self, name), Real):  # NumPy's would keep a checkpoint from loading
                object.__setattr__(self, name, float(getattr(self, name)))
        if self.preview_every and not self.preview_prompts:
            raise ValueError("preview_every needs preview_prompts, the prompts that the previews show")
        if not isinstance(self.preview_conditions, (list, tuple)):
            raise ValueError(f"preview_conditions must be a list, one per prompt, not {shown(self.preview_conditions)}")
        if self.preview_conditions and len(self.preview_conditions) != len(self.preview_prompts):
            raise ValueError(f"preview_conditions must be as many as preview_prompts, {len(self.preview_prompts)}")

    @classmethod
    def of(cls, given: TrainingConfig | Mapping[str, Any] | None) -> TrainingConfig:
        """A config from what a user may pass: a config, a mapping of its fields, or nothing.

        Raises:
            ValueError: a key is unknown (the message names the nearest known one), or a value is outside its range.
        """
        if given is None:
            return cls()
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise ValueError(f"config must be a TrainingConfig or a dict of its fields, not {type(given).__name__}")
        known = [field.name for field in dataclasses.fields(cls)]
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise ValueError(f"config has no setting {shown(key)}; {hint}")
        return cls(**given)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a text or a list of texts, not {shown(value)}")
    return tuple(texts)


def _check_schedule(name: str, value: Any) -> None:
    try:
        schedule = Schedule(value, sys.maxsize)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not any(value for value, _ in schedule.segments):
        raise ValueError(f"{name} is 0 throughout, with which nothing is trained; give a number above 0")
