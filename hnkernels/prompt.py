"""A1111's way of naming hypernetworks inside a prompt: ``<hypernet:name:0.7>``."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_TAG = re.compile(r"<hypernet:([^<>]*)>", re.IGNORECASE)


class ParsedPrompt(NamedTuple):
    """A prompt without its hypernetwork tags, and the strengths these ask for, in the order of the tags."""

    text: str
    strengths: dict[str, float]


def parse_prompt(prompt: str) -> ParsedPrompt:
    """Takes the ``<hypernet:name:strength>`` tags out of a prompt. Without a strength it is 1; other tags stay.

    Raises:
        ValueError: a tag has no name, a strength that is not a number, or a name that another tag has too.
    """
    strengths: dict[str, float] = {}
    for tag in _TAG.finditer(prompt):
        name, *numbers = (part.strip() for part in tag.group(1).split(":"))
        try:
            (strength,) = map(float, numbers) if numbers else (1.0,)
        except ValueError:
            strength = math.nan
        if not name or not math.isfinite(strength):
            raise ValueError(
                f"{tag.group(0)} is not a hypernetwork tag; it must be <hypernet:name> or <hypernet:name:0.7>"
            )
        if name in strengths:
            raise ValueError(f"the prompt names the hypernetwork {name!r} twice; name it once")
        strengths[name] = strength
    return ParsedPrompt(re.sub(r"\s{2,}", " ", _TAG.sub("", prompt)).strip() if strengths else prompt, strengths)
