"""The settings of ``TrainingConfig`` as data: what each is, accepts and does, for forms and for documentation."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from hnkernels.adapter.layers import TARGETS
from hnkernels.training.config import AT_LEAST, CHOICES, FOLDERS, MAY_BE_NONE, RANGES, SWITCHES, TrainingConfig


@dataclass(frozen=True)
class Setting:
    """One setting.

    Args:
        name: its name.
        kind: ``"integer"``, ``"number"``, ``"schedule"`` (a number or A1111's notation), ``"switch"``, ``"choice"``,
            ``"choices"`` (some of several), ``"text"``, ``"texts"``, ``"folder"`` or ``"object"`` (names and values).
        default: its default.
        optional: whether it may be ``None``.
        low, high: the least and largest number; ``None`` where there is no limit.
        choices: what is accepted, of choices.
        help: what it does, from the docstring.
    """

    name: str
    kind: str
    default: Any
    optional: bool
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    help: str


@cache
def settings() -> Mapping[str, Setting]:
    """All settings by name, in the order in which the config has them."""
    helps = _helps(TrainingConfig)
    return {one.name: _setting(one, helps[one.name]) for one in dataclasses.fields(TrainingConfig)}


def _setting(field: dataclasses.Field[Any], help: str) -> Setting:
    name = field.name
    made = field.default_factory
    default = field.default if made is dataclasses.MISSING else made()
    low, high = (AT_LEAST[name], math.inf) if name in AT_LEAST else RANGES.get(name, (-math.inf, math.inf))
    choices = TARGETS if name == "target_layers" else CHOICES.get(name, ())
    return Setting(
        name=name,
        kind=_kind(field),
        default=default,
        optional=name in MAY_BE_NONE or default is None,
        low=low if low > -(2**62) else None,
        high=None if high == math.inf else high,
        choices=tuple(choices),
        help=help,
    )


def _kind(field: dataclasses.Field[Any]) -> str:
    name, of = field.name, str(field.type)
    if name in SWITCHES:
        return "switch"
    if name in CHOICES:
        return "choice"
    if name == "target_layers":
        return "choices"
    if name in FOLDERS or name == "output_dir":
        return "folder"
    if name in AT_LEAST:
        return "integer"
    if name in RANGES:
        return "number"
    if "float" in of and "str" in of and not of.startswith("Mapping"):
        return "schedule"
    if of.startswith("Mapping"):
        return "object"
    return "texts" if of.startswith("Sequence") else "text"


def _helps(described: type) -> dict[str, str]:
    """Name → text of the entries of a docstring's ``Args``; one that is for several names is under each."""
    body = re.split(r"^Args:\n|^Raises:\n", inspect.cleandoc(described.__doc__ or ""), flags=re.MULTILINE)[1]
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*?)(?=^    \w|\Z)", body, flags=re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}
