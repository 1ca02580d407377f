"""Stable Diffusion XL, base and refiner: a UNet that is told the sizes of the picture, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hnkernels.training.families import clip_text
from hnkernels.training.families.family import Batch
from hnkernels.training.families.stable_diffusion import StableDiffusion, channels_beside

_AESTHETIC_SCORE = 6.0
"""Of pictures of which it is not known, as the refiner's pipeline assumes."""

_REFINERS_TEXT_WIDTH = 1280


def numbers_of(model: Any, pipeline: Any = None) -> int:
    """How many numbers of a picture a model is told beside the pooled text: 6, a refiner 5; 0 if it is none of them."""
    config = model.config
    unet = any(kind.__name__ == "UNet2DConditionModel" for kind in type(model).__mro__)
    if not unet or config.get("addition_embed_type") != "text_time" or config.get("class_embed_type") is not None:
        return 0
    encoder = getattr(pipeline, "text_encoder_2", None)
    if encoder is None:
        return 5 if config["cross_attention_dim"] == _REFINERS_TEXT_WIDTH else 6
    told = config["projection_class_embeddings_input_dim"] - encoder.config.projection_dim
    return int(told // config["addition_time_embed_dim"])


class StableDiffusionXL(StableDiffusion):
    label = "Stable Diffusion XL (base)"
    text_keys = ("encoder_hidden_states", "text_embeds")
    picture_keys: tuple[str, ...] = ("time_ids",)
    settings = ()
    _numbers = 6

    @classmethod
    def has(cls, model: Any, pipeline: Any = None) -> bool:
        return numbers_of(model, pipeline) == cls._numbers and channels_beside(model) == 0

    @property
    def version(self) -> str:
        return "sdxl_base_v1-0" if self._numbers == 6 else "sdxl_refiner_v1-0"

    def encodes_alone(self, caption: str) -> bool:
        zeros = caption == "" and bool(self.pipeline.config.get("force_zeros_for_empty_prompt"))
        return zeros or any(clip_text.is_long(tokenizer, caption) for tokenizer, _ in self._encoders())

    def text(self, captions: Sequence[str], clip_skip: int = 1) -> dict[str, Tensor]:
        if self.encodes_alone(captions[0]):
            return self._long(captions[0]) if captions[0] else self._none()
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            list(captions), device=self._encoders()[0][1].device, num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )  # fmt: skip
        return {"encoder_hidden_states": embeddings, "text_embeds": pooled}

    def _none(self) -> dict[str, Tensor]:
        """What the pipeline takes where there is no prompt: zeros."""
        return {key: torch.zeros_like(value) for key, value in self.text([" "]).items()}

    def _long(self, caption: str) -> dict[str, Tensor]:
        states = []
        for tokenizer, encoder in self._encoders():
            parts = clip_text.parts_of(tokenizer, caption)
            states.append(clip_text.hidden(encoder, parts, 2, normed=False).flatten(0, 1))
            pooled = encoder(parts[:1].to(encoder.device))[0]  # of the last encoder, as the pipeline takes it
        return {"encoder_hidden_states": torch.cat(states, -1)[None], "text_embeds": pooled}

    def _encoders(self) -> list[tuple[Any, Any]]:
        """Tokenisers and text encoders; a refiner has the second alone."""
        p = self.pipeline
        pairs = [(p.tokenizer, p.text_encoder), (p.tokenizer_2, p.text_encoder_2)]
        return [(tokenizer, encoder) for tokenizer, encoder in pairs if encoder is not None]

    def of_picture(self, original: tuple[int, int], crop: tuple[int, int], size: tuple[int, int]) -> dict[str, Tensor]:
        height_first = (original[1], original[0], crop[1], crop[0], size[1], size[0])
        return {"time_ids": torch.tensor(height_first, dtype=torch.float32)}

    def added(self, batch: Batch) -> dict[str, Any]:
        return {
            "added_cond_kwargs": {
                "text_embeds": self.given(batch, "text_embeds"),
                "time_ids": batch["time_ids"].to(self.place()[0]),  # above 2048 half precision rounds them
            }
        }


class StableDiffusionXLRefiner(StableDiffusionXL):
    label = "Stable Diffusion XL (refiner)"
    _numbers = 5

    def of_picture(self, original: tuple[int, int], crop: tuple[int, int], size: tuple[int, int]) -> dict[str, Tensor]:
        numbers = (original[1], original[0], crop[1], crop[0], _AESTHETIC_SCORE)
        return {"time_ids": torch.tensor(numbers, dtype=torch.float32)}
