"""The caption that a training step uses, made from an example's."""

from __future__ import annotations

import torch
from torch import Generator


class CaptionMaker:
    """Makes the caption that a training step uses from an example's.

    Args:
        template: ``[filewords]`` stands for the example's caption, ``[name]`` for ``name``.
        name: the network's name.
        shuffle_tags, tag_dropout, caption_dropout, keep_tags: see ``TrainingConfig``.
    """

    def __init__(
        self,
        template: str,
        name: str,
        shuffle_tags: bool = False,
        tag_dropout: float = 0.0,
        caption_dropout: float = 0.0,
        keep_tags: int = 0,
    ):
        self.template, self.name = template, name
        self.shuffle_tags, self.tag_dropout, self.caption_dropout = shuffle_tags, tag_dropout, caption_dropout
        self.keep_tags = keep_tags

    def __call__(self, caption: str, generator: Generator | None = None) -> str:
        """The caption; what is drawn for it comes from ``generator``, and nothing is unless a setting says so."""
        if self.caption_dropout and _chance(generator) < self.caption_dropout:
            return ""
        if self.shuffle_tags or self.tag_dropout:
            tags = [tag.strip() for tag in caption.split(",")]
            kept, tags = tags[: self.keep_tags], tags[self.keep_tags :]
            tags = [tag for tag in tags if not self.tag_dropout or _chance(generator) >= self.tag_dropout]
            if self.shuffle_tags:
                tags = [tags[i] for i in torch.randperm(len(tags), generator=generator).tolist()]
            caption = ", ".join([*kept, *tags])
        return self.template.replace("[filewords]", caption).replace("[name]", self.name)


def _chance(generator: Generator | None) -> float:
    return torch.rand((), generator=generator).item()
