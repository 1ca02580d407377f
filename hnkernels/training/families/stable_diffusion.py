"""Stable Diffusion 1.x and 2.x: a UNet that sees the text of one CLIP encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hnkernels.training.families import clip_text
from hnkernels.training.families.family import Batch, Family, diffusion_scheduler

_SD2_TEXT_WIDTH = 1024


class StableDiffusion(Family):
    label = "Stable Diffusion 1.x and 2.x"
    settings: ClassVar[tuple[str, ...]] = ("clip_skip",)

    @classmethod
    def has(cls, model: Any, pipeline: Any = None) -> bool:
        return cls.conditioned_on_text(model) and channels_beside(model) == 0

    @classmethod
    def conditioned_on_text(cls, model: Any) -> bool:
        """Whether a model is a UNet that is told nothing but the timestep and the text."""
        config = model.config
        further = ("addition_embed_type", "class_embed_type", "num_class_embeds")
        return (
            any(kind.__name__ == "UNet2DConditionModel" for kind in type(model).__mro__)
            and all(config.get(key) is None for key in further)
            and config.get("encoder_hid_dim_type") in (None, "text_proj")
        )

    @property
    def version(self) -> str:
        if self.text_width != _SD2_TEXT_WIDTH:
            return "sd_v1"
        return "sd_v2_v" if getattr(self.noising(), "predicts", "") == "v_prediction" else "sd_v2"

    def default_scheduler(self) -> Any:
        return diffusion_scheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    @property
    def latent_channels(self) -> int:
        return int(self.model.config["out_channels"])

    @property
    def text_width(self) -> int | None:
        width = self.model.config.get("encoder_hid_dim") or self.model.config["cross_attention_dim"]
        return width if isinstance(width, int) else None

    def encodes_alone(self, caption: str) -> bool:
        return clip_text.is_long(self.pipeline.tokenizer, caption)

    def text(self, captions: Sequence[str], clip_skip: int = 1) -> dict[str, Tensor]:
        pipeline = self.pipeline
        if clip_skip > 1 or self.encodes_alone(captions[0]):  # all of them have as many parts
            parts = torch.cat([clip_text.parts_of(pipeline.tokenizer, caption) for caption in captions])
            states = clip_text.hidden(pipeline.text_encoder, parts, clip_skip, normed=True)
            return {"encoder_hidden_states": states.reshape(len(captions), -1, states.shape[-1])}
        embeddings, _ = pipeline.encode_prompt(
            list(captions), pipeline.text_encoder.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeddings}

    def predict(self, noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        text = self.given(batch, "encoder_hidden_states")
        prediction: Tensor = self.model(noisy, timesteps, encoder_hidden_states=text, **self.added(batch)).sample
        return prediction

    def added(self, batch: Batch) -> dict[str, Any]:
        """Further arguments of the UNet."""
        return {}


def channels_beside(model: Any) -> int:
    """How many channels a UNet takes beside those that it predicts."""
    return int(model.config["in_channels"]) - int(model.config["out_channels"])
