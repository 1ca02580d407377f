"""A1111's way of naming hypernetworks inside a prompt: ``<hypernet:name:0.7>``."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import NamedTuple

from hnkernels.errors import InputError
from hnkernels.wording import shown

_TAG = re.compile(r"<hypernet:([^<>]*)>", re.IGNORECASE)
_OPENED = re.compile(r"<hypernet:.{0,40}", re.IGNORECASE | re.DOTALL)
_HASHED = re.compile(r"(.+?)\s*\([0-9a-f]{8,10}\)", re.IGNORECASE | re.DOTALL)


class ParsedPrompt(NamedTuple):
    """A prompt without its hypernetwork tags, and the strengths these ask for, in the order of the tags."""

    text: str
    strengths: dict[str, float]


def parse_prompt(prompt: str) -> ParsedPrompt:
    """Takes the ``<hypernet:name:strength>`` tags out of a prompt. Without a strength it is 1; other tags stay.
    Names are as they stand there; ``resolve_name`` says which network is meant.

    Raises:
        ValueError: a tag has no name, a strength that is not a number, or a name that another tag has too; or it is
            not closed, or holds another tag.
    """
    strengths: dict[str, float] = {}
    for tag in _TAG.finditer(prompt):
        name, *numbers = (part.strip() for part in tag.group(1).split(":"))
        try:
            (strength,) = map(float, numbers) if numbers else (1.0,)
        except ValueError:
            strength = math.nan
        if not name or not math.isfinite(strength):
            raise InputError(
                f"{shown(tag.group(0))} is not a hypernetwork tag; it must be <hypernet:name> or <hypernet:name:0.7>"
            )
        if name in strengths:
            raise InputError(f"the prompt names the hypernetwork {shown(name)} twice; name it once")
        strengths[name] = strength
    text = _TAG.sub("", prompt)
    if opened := _OPENED.search(text):
        raise InputError(
            f"the tag {opened.group(0)!r} is not closed before the next one; it must be <hypernet:name> or "
            "<hypernet:name:0.7>"
        )
    return ParsedPrompt(re.sub(r"\s{2,}", " ", text).strip() if strengths else prompt, strengths)


def resolve_name(name: str, known: Collection[str]) -> str:
    """The network that a tag means: ``name``, or what stands before the hash in the ``style(1a2b3c4d)`` of old A1111.

    Only if the name as a whole is not ``known``, and what stands before the hash is; otherwise it is ``name``.
    """
    hashed = _HASHED.fullmatch(name)
    return hashed[1] if hashed and name not in known and hashed[1] in known else name
