"""What a training run is told."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from hnkernels.adapter.layers import TARGETS
from hnkernels.errors import InputError
from hnkernels.training.schedule import Schedule
from hnkernels.wording import shown

CHOICES = {
    "mixed_precision": ("no", "fp16", "bf16"),
    "gradient_clip_mode": ("norm", "value"),
    "latent_sampling": ("once", "deterministic", "random"),
    "loss_type": ("l2", "huber", "smooth_l1"),
    "timestep_sampling": ("auto", "uniform", "logit_normal", "shifted"),
}
AT_LEAST = {
    "batch_size": 1,
    "max_epochs": 1,
    "max_steps": 1,
    "gradient_accumulation_steps": 1,
    "resolution": 1,
    "seed": -(2**63),
    "checkpoint_every": 0,
    "preview_every": 0,
    "preview_inference_steps": 1,
    "bucket_step": 8,
    "keep_tags": 0,
    "clip_skip": 1,
    "min_timestep": 0,
    "max_timestep": 1,
    "lr_warmup_steps": 0,
    "validate_every": 1,
}
MAY_BE_NONE = {"max_steps", "resolution", "max_timestep", "snr_gamma", "ema_decay"}
RANGES = {
    "weight_decay": (0, math.inf),
    "tag_dropout": (0, 1),
    "caption_dropout": (0, 1),
    "preview_guidance": (0, math.inf),
    "bucket_max_aspect": (1, math.inf),
    "prior_loss_weight": (0, math.inf),
    "snr_gamma": (0, math.inf),
    "noise_offset": (0, 1),
    "huber_delta": (0, math.inf),
    "ema_decay": (0, 1),
    "validation_split": (0, math.inf),
}
SWITCHES = (
    *("gradient_checkpointing", "shuffle_tags", "progress", "bucketing", "random_flip", "masked_loss", "skip_broken"),
    *("zero_terminal_snr", "decay_biases_and_norms"),
)
FOLDERS = ("regularization_data", "mask_data", "cache_dir")


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
        weight_decay: of the weights; of biases and norms only with ``decay_biases_and_norms``.
        latent_sampling: ``"once"`` draws every image's latent once, ``"deterministic"`` takes the mean, ``"random"``
            draws at every use.
        caption_template: ``[filewords]`` stands for the example's caption, ``[name]`` for the network's name.
        shuffle_tags: shuffles the comma-separated parts of a caption at every use.
        tag_dropout: probability of leaving out each of these parts.
        caption_dropout: probability of training on the empty caption, for classifier-free guidance; for InstructPix2Pix
            likewise, and by itself, of training without the picture to be edited.
        keep_tags: the first so many parts of a caption are neither shuffled nor left out.
        clip_skip: which hidden layer of CLIP the text comes from, counted from the end; 1 is the last, and 2 what
            many anime models want. Of the UNets of Stable Diffusion 1.x and 2.x.
        resolution: side of the training images in pixels; ``None`` for what the model was made for.
        bucketing: pictures keep their aspect ratio: each is scaled to the nearest of a set of sizes of about
            ``resolution²`` pixels. Without it they are cropped to squares.
        bucket_step: the sides of these sizes are multiples of it, in pixels.
        bucket_max_aspect: the longest side of these sizes by the shortest.
        random_flip: mirrors every other picture, drawn at each use.
        regularization_data: a folder of pictures of the class, as for ``data``: every batch has as many of these as of
            the others (prior preservation). Their captions are taken without ``caption_template``. It may lie inside
            ``data``, which is then read without it.
        prior_loss_weight: their weight in the loss.
        masked_loss: the loss counts where a picture's mask is white: its alpha channel, or a picture of the same name
            in ``mask_data``.
        mask_data: a folder of masks; for inpainting models also without ``masked_loss``, white where is painted.
        cache_dir: a folder that keeps encoded pictures and captions for the next run. ``None`` keeps them in memory.
        skip_broken: leaves out pictures that cannot be read, under a warning that names them.
        loss_type: ``"l2"``, ``"huber"`` or ``"smooth_l1"``.
        huber_delta: where the last two go from square to absolute error.
        snr_gamma: Min-SNR-γ weighting (arXiv 2303.09556), 5 there; ``None`` weighs all timesteps alike. Not for flow
            matching.
        min_timestep, max_timestep: timesteps are drawn from [min_timestep, max_timestep); ``None`` for all the model
            has.
        timestep_sampling: how: ``"uniform"``, ``"logit_normal"`` (middle ones more often), ``"shifted"`` (of flow
            matching: later ones more often, by the model's own shift). ``"auto"`` is what the model was trained with:
            uniform for diffusion, shifted logit-normal for flow matching.
        noise_offset: a part of the noise that is the same over a whole channel, 0.05 to 0.1 where it is used.
        zero_terminal_snr: rescales the noise schedule so that its last timestep is noise alone (arXiv 2305.08891). For
            v-prediction.
        optimizer: a class of ``torch.optim`` in lower or its own case (``"adamw"``, ``"Adafactor"`` …), one of
            ``"adamw8bit"``, ``"lion"``, ``"prodigy"`` if the package that has it is installed, or any class by its
            dotted path. Prodigy finds the rate by itself: give it a ``learning_rate`` of 1. Lion's are about a tenth of
            AdamW's.
        optimizer_args: further arguments of it.
        lr_scheduler: a scheduler of diffusers by its name (``"cosine"``, ``"linear"``, ``"polynomial"`` …), which
            ``learning_rate`` is then multiplied by.
        lr_warmup_steps, lr_scheduler_args: its arguments, as ``diffusers.optimization.get_scheduler`` takes them.
        learning_rate_factors: factors on the learning rate: of a ``Hypernetwork`` by stream (``"k"``, ``"v"``), by
            width (``"768"``) and by kind of attention (``"attn1"``, ``"attn2"``) where a width belongs to one; of a
            ``WeightHypernetwork`` by its parts (``"encoder"``, ``"generator"``, ``"decoder"``).
        decay_biases_and_norms: applies ``weight_decay`` to these too.
        ema_decay: keeps an exponential moving average of the network, which is what is validated, shown and saved at
            the end; 0.999, say.
        validation_split: a share of the pictures (below 1), or their number, that is not trained on, and tells how far
            the training has come.
        validate_every: steps between validations.
        trackers: trackers of accelerate by name (``"tensorboard"``, ``"wandb"`` …), beside the log.
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
    keep_tags: int = 0
    clip_skip: int = 1
    resolution: int | None = None
    bucketing: bool = False
    bucket_step: int = 64
    bucket_max_aspect: float = 2.0
    random_flip: bool = False
    regularization_data: str | None = None
    prior_loss_weight: float = 1.0
    masked_loss: bool = False
    mask_data: str | None = None
    cache_dir: str | None = None
    skip_broken: bool = False
    loss_type: str = "l2"
    huber_delta: float = 0.1
    snr_gamma: float | None = None
    min_timestep: int = 0
    max_timestep: int | None = None
    timestep_sampling: str = "auto"
    noise_offset: float = 0.0
    zero_terminal_snr: bool = False
    optimizer: str = "adamw"
    optimizer_args: Mapping[str, Any] = field(default_factory=dict)
    lr_scheduler: str | None = None
    lr_warmup_steps: int = 0
    lr_scheduler_args: Mapping[str, Any] = field(default_factory=dict)
    learning_rate_factors: Mapping[str, float] = field(default_factory=dict)
    decay_biases_and_norms: bool = False
    ema_decay: float | None = None
    validation_split: float = 0.0
    validate_every: int = 100
    trackers: Sequence[str] = ()
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
        for name in ("target_layers", "preview_prompts", "trackers"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        if not self.target_layers or not set(self.target_layers) <= set(TARGETS):
            raise InputError(f"target_layers must be some of {', '.join(TARGETS)}, not {shown(self.target_layers)}")
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                raise InputError(f"{name} must be one of {', '.join(accepted)}, not {shown(getattr(self, name))}")
        for name, least in AT_LEAST.items():
            value = getattr(self, name)
            if value is None and name in MAY_BE_NONE:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
                raise InputError(f"{name} must be an integer >= {least}, not {shown(value)}")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is None and name in MAY_BE_NONE:
                continue
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not low <= value <= min(high, sys.float_info.max):
                within = f"in [{low}, {high}]" if high < math.inf else f">= {low}"
                raise InputError(f"{name} must be a number {within}, not {shown(value)}")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be true or false, not {shown(getattr(self, name))}")
        for name in ("caption_template", "optimizer", "lr_scheduler"):
            none = name == "lr_scheduler" and self.lr_scheduler is None
            if not none and not isinstance(getattr(self, name), str):
                raise InputError(f"{name} must be a text, not {shown(getattr(self, name))}")
        for name in FOLDERS:
            folder = getattr(self, name)
            if folder is not None and (not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder)):
                raise InputError(f"{name} must be the path of a folder, not {shown(folder)}")
            object.__setattr__(self, name, None if folder is None else os.fspath(folder))
        _check_schedule("learning_rate", self.learning_rate)
        if self.gradient_clip is not None:
            _check_schedule("gradient_clip", self.gradient_clip)
        self._check_together()
        if not isinstance(self.output_dir, (str, os.PathLike)) or not os.fspath(self.output_dir):
            raise InputError(f"output_dir must be the path of a folder, not {shown(self.output_dir)}")
        object.__setattr__(self, "output_dir", os.fspath(self.output_dir))
        for name in ("learning_rate", "gradient_clip", *RANGES):
            if isinstance(value := getattr(self, name), Real):  # NumPy's would keep a checkpoint from loading
                plain = float(value)
                object.__setattr__(self, name, int(plain) if name == "validation_split" and plain >= 1 else plain)
        if self.preview_every and not self.preview_prompts:
            raise InputError("preview_every needs preview_prompts, the prompts that the previews show")
        if not isinstance(self.preview_conditions, (list, tuple)):
            raise InputError(f"preview_conditions must be a list, one per prompt, not {shown(self.preview_conditions)}")
        if self.preview_conditions and len(self.preview_conditions) != len(self.preview_prompts):
            raise InputError(f"preview_conditions must be as many as preview_prompts, {len(self.preview_prompts)}")

    def _check_together(self) -> None:
        """Raises ``ValueError`` for settings that contradict each other."""
        for name in ("optimizer_args", "lr_scheduler_args", "learning_rate_factors"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise InputError(f"{name} must be an object of names and values, not {shown(value)}")
            if strange := [key for key, entry in value.items() if not _is_plain(entry)]:
                raise InputError(
                    f"{name}[{strange[0]!r}] must be a number, a text, true, false, null or a list of these, not "
                    f"{shown(value[strange[0]])}"
                )
            object.__setattr__(self, name, dict(value))
        for key, factor in self.learning_rate_factors.items():
            number = isinstance(factor, Real) and not isinstance(factor, bool)
            if not number or not 0 <= factor <= sys.float_info.max:
                raise InputError(f"learning_rate_factors[{key!r}] must be a number >= 0, not {shown(factor)}")
        if self.max_timestep is not None and self.min_timestep >= self.max_timestep:
            raise InputError(
                f"min_timestep is {self.min_timestep} and max_timestep {self.max_timestep}; the first must be lower"
            )
        if self.huber_delta == 0:
            raise InputError("huber_delta must be above 0")
        if self.lr_scheduler is None and (self.lr_warmup_steps or self.lr_scheduler_args):
            raise InputError(
                "lr_warmup_steps and lr_scheduler_args are for an lr_scheduler; name one, such as "
                "'constant_with_warmup' or 'cosine'"
            )
        if self.lr_scheduler is not None and not isinstance(self.learning_rate, Real):
            raise InputError(
                f"learning_rate is the schedule {shown(self.learning_rate)} and lr_scheduler "
                f"{shown(self.lr_scheduler)}; give a number with an lr_scheduler, or leave that out"
            )
        if self.validation_split >= 1 and self.validation_split != int(self.validation_split):
            raise InputError(
                f"validation_split must be a share below 1 or a number of pictures, not {self.validation_split}"
            )

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
            raise InputError(f"config must be a TrainingConfig or a dict of its fields, not {type(given).__name__}")
        known = [one.name for one in dataclasses.fields(cls)]
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise InputError(f"config has no setting {shown(key)}; {hint}")
        return cls(**given)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} must be a text or a list of texts, not {shown(value)}")
    return tuple(texts)


def _is_plain(value: Any) -> bool:
    """Whether a value can stand in a JSON file and in a checkpoint."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))


def _check_schedule(name: str, value: Any) -> None:
    try:
        schedule = Schedule(value, sys.maxsize)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    if not any(value for value, _ in schedule.segments):
        raise InputError(f"{name} is 0 throughout, with which nothing is trained; give a number above 0")
