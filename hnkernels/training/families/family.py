"""What training has to know of a kind of models."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hnkernels.errors import InputError
from hnkernels.training.noising import Noising, noising_of

Batch = Mapping[str, Any]


class Family(ABC):
    """A kind of models: how text and pictures are encoded for them, what they are called with and what they learn.

    Args:
        model: the denoiser, a UNet or a transformer of diffusers.
        pipeline: its pipeline; ``None`` where the data is encoded already.

    Attributes:
        label: what users call it.
        text_keys: what ``text`` gives for a caption, which is what a batch must hold beside the latents.
        picture_keys: what a batch must hold of every picture besides.
        settings: which settings of training that are not for all models are for these.
    """

    label: ClassVar[str]
    text_keys: ClassVar[tuple[str, ...]] = ("encoder_hidden_states",)
    picture_keys: tuple[str, ...] = ()
    settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any, pipeline: Any = None):
        self.model, self.pipeline = model, pipeline
        self._place: tuple[torch.device, torch.dtype] | None = None
        self._casts = False

    @classmethod
    @abstractmethod
    def has(cls, model: Any, pipeline: Any = None) -> bool:
        """Whether a model is of this kind; by its ``config``, and those of the pipeline's parts, alone."""

    def noising(self, scheduler: Any = None, zero_terminal_snr: bool = False) -> Noising:
        """How noise is added: by a scheduler of diffusers, the pipeline's own, or what such models were trained with.

        Raises:
            ValueError: it is of a kind that cannot be trained with; see ``noising_of``.
        """
        scheduler = scheduler or getattr(self.pipeline, "scheduler", None) or self.default_scheduler()
        return noising_of(scheduler, zero_terminal_snr)

    @property
    @abstractmethod
    def version(self) -> str:
        """The kind of base model in the words of kohya's trainers; see ``persistence.origin``."""

    @abstractmethod
    def default_scheduler(self) -> Any:
        """The noise schedule of such models, for one that comes without a pipeline."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that the model denoises."""
        return int(self.model.config["in_channels"])

    @property
    def text_width(self) -> int | None:
        """Width of ``encoder_hidden_states``; ``None`` where any will do."""
        return None

    @property
    def side(self) -> int:
        """Side in pixels of the square pictures that the model was made for."""
        return int(self.model.config["sample_size"]) * self._scale

    @property
    def multiple(self) -> int:
        """What the sides of pictures must be multiples of, in pixels."""
        return self._scale

    @property
    def _scale(self) -> int:
        """Pixels of a picture per latent, along a side."""
        return 2 ** (len(self.pipeline.vae.config["block_out_channels"]) - 1)

    def encodes_alone(self, caption: str) -> bool:
        """Whether ``text`` takes this caption by itself alone, for its embeddings have a length of their own."""
        return False

    @abstractmethod
    def text(self, captions: Sequence[str], clip_skip: int = 1) -> dict[str, Tensor]:
        """Captions as the model takes them: ``text_keys`` → [B, ...]."""

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, scaled as the model takes them. [B, 3, H, W] → [B, C, h, w]."""
        vae = self.pipeline.vae
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        shift, scaling = vae.config.get("shift_factor") or 0.0, vae.config["scaling_factor"]
        return (posterior.mean.float() - shift) * scaling, posterior.std.float() * scaling

    def source_latents(self, pixels: Tensor) -> Tensor:
        """Latents of pictures to be edited, not scaled, for models that have ``"source_latents"`` among their
        ``picture_keys``. Shape: [B, 3, H, W] → [B, C, h, w]."""
        vae = self.pipeline.vae
        latents: Tensor = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        return latents.float()

    def of_picture(self, original: tuple[int, int], crop: tuple[int, int], size: tuple[int, int]) -> dict[str, Tensor]:
        """What the model is told of a picture: ``picture_keys`` → tensors.

        Args:
            original: width and height of the file in pixels.
            crop: left and top edge of what is trained on, in the scaled picture.
            size: width and height of what is trained on.
        """
        return {}

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        """What the model makes of noisy latents, in their shape.

        Args:
            noisy: [B, C, h, w] on the model's device and in its dtype.
            timesteps: [B].
            batch: with ``text_keys`` and ``picture_keys``.
        """

    def given(self, batch: Batch, key: str) -> Tensor:
        """An entry of the batch on the model's device; a floating-point one in its dtype."""
        value: Tensor = batch[key]
        device, dtype = self.place()
        return value.to(device, dtype if value.is_floating_point() else None)

    def casts_layerwise(self) -> bool:
        """Whether diffusers casts the weights of a layer for its call alone; looked up with ``place``."""
        self.place()
        return self._casts

    def place(self, again: bool = False) -> tuple[torch.device, torch.dtype]:
        """Where the model is, and what it computes in; looked up once, for diffusers walks through all its modules.

        Args:
            again: look even if it is known.
        """
        if again or self._place is None:
            self._place = (self.model.device, self.model.dtype)
            parameters = self.model.parameters() if isinstance(self.model, nn.Module) else ()
            self._casts = any(p.dtype.itemsize == 1 and p.is_floating_point() for p in parameters)
        return self._place


def resolution_of(family: Family, resolution: int | None) -> int:
    """Side of square training pictures in pixels, of a setting that may leave it to the model.

    Raises:
        ValueError: the model cannot take it.
    """
    side = resolution or family.side
    if side % family.multiple:
        raise InputError(f"resolution {side} must be a multiple of {family.multiple} for this model")
    return side


def bucket_step_of(family: Family, step: int) -> int:
    """What the sides of sizes of many aspect ratios are multiples of, in pixels: of a setting and for the model."""
    return math.lcm(step, family.multiple)


def diffusion_scheduler(**options: Any) -> Any:
    """A DDPM scheduler with 1000 timesteps."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=1000, **options)


def flow_scheduler(**options: Any) -> Any:
    """A scheduler of flow matching with 1000 timesteps."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, **options)


def per_sample(value: float, like: Tensor) -> Tensor:
    """One number for every sample of a batch, [B]."""
    return torch.full((len(like),), value, device=like.device, dtype=like.dtype)
