"""What the pipeline that is calling the model says of its batches and of its steps."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from hnkernels.adapter.strength import Value

Groups = tuple[bool, ...]
"""The equal parts of a batch, in order: whether each is of the prompt, or of classifier-free guidance's negative."""

WITH_GUIDANCE: Groups = (False, True)
"""How a pipeline lays out its batch under classifier-free guidance, and what ``PerRow`` is written for."""

_GUIDED = "do_classifier_free_guidance"


def calling_groups() -> Groups | None:
    """The parts of the batches of the diffusers pipeline that is running in this thread; ``None`` without one.

    It is found among the callers: what a pipeline says of itself outlives its run.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__":
            variables = frame.f_locals
            pipeline = variables.get("self")
            if hasattr(type(pipeline), _GUIDED) or _GUIDED in variables:
                return _groups(pipeline, bool(variables.get(_GUIDED, getattr(pipeline, _GUIDED, False))))
        frame = frame.f_back
    return None


def _groups(pipeline: Any, guided: bool) -> Groups:
    if guided and hasattr(type(pipeline), "image_guidance_scale"):  # InstructPix2Pix: prompt, picture alone, neither
        return (True, False, False)
    groups = WITH_GUIDANCE if guided else (True,)
    if getattr(pipeline, "do_perturbed_attention_guidance", False):  # the prompt once more, with other attention
        groups = (*groups, True)
    return groups


def in_groups(value: Value, groups: Groups | None) -> Value:
    """A strength that is written for guidance's two halves, as it is for a batch of these parts.

    One that cannot be halved is for the batch as it comes.
    """
    if groups is None or groups == WITH_GUIDANCE or not isinstance(value, tuple) or len(value) % 2:
        return value
    half = len(value) // 2
    halves = value[:half], value[half:]
    values = tuple(v for of_prompt in groups for v in halves[of_prompt])
    return values if len(values) > 1 else values[0]
