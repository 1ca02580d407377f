"""What a training run is told."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hnkernels.adapter.layers import TARGETS
from hnkernels.training.schedule import Schedule

_CHOICES = {
    "mixed_precision": ("no", "fp16", "bf16"),
    "gradient_clip_mode": ("norm", "value"),
    "latent_sampling": ("once", "deterministic", "random"),
}
_AT_LEAST = {
    "batch_size": 1,
    "max_epochs": 1,
    "gradient_accumulation_steps": 1,
    "checkpoint_every": 0,
    "preview_every": 0,
    "preview_inference_steps": 1,
}


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
        gradient_clip: largest gradient norm (or value), a number or a schedule; ``None`` for no clipping. Applied to
            the unscaled gradient.
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
        targets = (self.target_layers,) if isinstance(self.target_layers, str) else tuple(self.target_layers)
        if not targets or not set(targets) <= set(TARGETS):
            raise ValueError(f"target_layers must be some of {', '.join(TARGETS)}, not {self.target_layers!r}")
        object.__setattr__(self, "target_layers", targets)
        prompts = (self.preview_prompts,) if isinstance(self.preview_prompts, str) else tuple(self.preview_prompts)
        object.__setattr__(self, "preview_prompts", prompts)
        for name, accepted in _CHOICES.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, not {getattr(self, name)!r}")
        for name, least in _AT_LEAST.items():
            _check_count(name, getattr(self, name), least)
        for name in ("max_steps", "resolution"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name), 1)
        for name in ("tag_dropout", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)!r}")
        Schedule(self.learning_rate, 1)
        if self.gradient_clip is not None:
            Schedule(self.gradient_clip, 1)
        if self.preview_every and not prompts:
            raise ValueError("preview_every needs preview_prompts, the prompts that the previews show")
        if self.preview_conditions and len(self.preview_conditions) != len(prompts):
            raise ValueError(f"preview_conditions must be as many as preview_prompts, {len(prompts)}")

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
                raise ValueError(f"config has no setting {key!r}; {hint}")
        return cls(**given)


def _check_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, not {value!r}")
