"""What is to be drawn, and with which networks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hnkernels.adapter.strength import Strength
from hnkernels.errors import InputError
from hnkernels.prompt import parse_prompt, resolve_name
from hnkernels.wording import shown

STEPS = (1, 1000)
BATCH = (1, 16)
SEED = (0, 2**63 - 1)
SIDE = (8, 2048)
"""The least and the most that is accepted. Sides are in pixels, and multiples of the least."""

LONGEST_PROMPT = 10_000  # characters


class SettingError(InputError):
    """A setting that nothing can be drawn with.

    Args:
        setting: its name.
        message: what is wrong with it, as a sentence whose subject is the setting.
    """

    def __init__(self, setting: str, message: str):
        super().__init__(f"{setting} {message}")
        self.setting = setting


@dataclass(frozen=True)
class NetworkUse:
    """A hypernetwork in a picture.

    Args:
        file: where it lies.
        name: by which the prompt calls it.
        strength: of the whole of it.
        parts: what the strength is multiplied by in parts of the model: a table as ``Strength`` has them.
        styles: for a weight hypernetwork, style → weight; without any, the prompt is its condition.
    """

    file: Path
    name: str
    strength: float = 1.0
    parts: Mapping[str, Any] = field(default_factory=dict)
    styles: Mapping[str, float] = field(default_factory=dict)

    @property
    def acting(self) -> Strength:
        """The strength as ``attach`` takes it."""
        return {"*": self.strength, **self.parts} if self.parts else self.strength


@dataclass(frozen=True)
class DrawRequest:
    """What is to be drawn.

    Args:
        model: folder of a diffusers pipeline.
        prompt: what to draw; a tag ``<hypernet:name:0.7>`` sets the strength of the network of that name.
        negative: what not to draw.
        networks: they act one after the other.
        seed: of the first picture's noise; the next ones have the seeds after it.
        steps: of denoising.
        guidance: scale of classifier-free guidance.
        batch: how many pictures.
        width, height: in pixels; ``None`` for what the model was trained at.
        model_name: what people call the model; its folder's name if empty.
    """

    model: Path
    prompt: str
    negative: str = ""
    networks: tuple[NetworkUse, ...] = ()
    seed: int = 0
    steps: int = 20
    guidance: float = 7.5
    batch: int = 1
    width: int | None = None
    height: int | None = None
    model_name: str = ""

    def check(self) -> None:
        """Refuses what could not be drawn, as far as that can be seen without any file.

        Raises:
            ValueError: a setting is of another type or out of its range, or the prompt calls a network that is not
                here.
        """
        for name, text in (("prompt", self.prompt), ("negative", self.negative)):
            if not isinstance(text, str) or len(text) > LONGEST_PROMPT:
                raise SettingError(name, f"must be a text of at most {LONGEST_PROMPT} characters, not {shown(text)}")
        for name, number, (least, most) in (
            ("seed", self.seed, SEED),
            ("steps", self.steps, STEPS),
            ("batch", self.batch, BATCH),
            ("width", self.width, SIDE),
            ("height", self.height, SIDE),
        ):
            optional = name in ("width", "height")
            if optional and number is None:
                continue
            if type(number) is not int or not least <= number <= most:
                raise SettingError(name, f"must be an integer from {least} to {most}, not {shown(number)}")
            if optional and number % SIDE[0]:
                raise SettingError(name, f"must be a multiple of {SIDE[0]}, not {number}")
        _finite("guidance", self.guidance)
        for use in self.networks:
            _finite("strength", use.strength)
        names = Counter(use.name for use in self.networks)
        if twice := [name for name, count in names.items() if count > 1]:
            same = " and ".join(str(use.file) for use in self.networks if use.name == twice[0])
            raise InputError(f"{same} are both named {twice[0]!r}; give one of the files another name")
        self.called({}, "choose it as well")

    def called(self, known: Mapping[str, Path], remedy: str) -> DrawRequest:
        """The request with what the tags of its prompt ask for: strengths, and networks that are not in it yet.

        Args:
            known: files of networks that a tag may call, by name.
            remedy: what to do about a tag whose network is not among them.

        Raises:
            ValueError: a tag is none, or calls a network that nobody knows, or one twice.
        """
        tags = parse_prompt(self.prompt).strengths
        names = {*known, *(use.name for use in self.networks)}
        asked = {resolve_name(tag, names): strength for tag, strength in tags.items()}
        if len(asked) < len(tags):
            raise InputError(
                f"the prompt names a hypernetwork twice, once with its hash: {', '.join(tags)}; name it once"
            )
        if unknown := set(asked) - names:
            raise InputError(f"the prompt names the hypernetwork {', '.join(sorted(unknown))}; {remedy}")
        here = tuple(replace(use, strength=asked.pop(use.name, use.strength)) for use in self.networks)
        more = tuple(NetworkUse(known[name], name, strength) for name, strength in asked.items())
        return replace(self, networks=here + more)

    @property
    def text(self) -> str:
        """The prompt without its tags."""
        return parse_prompt(self.prompt).text

    def with_network(self, name: str, **changes: Any) -> DrawRequest:
        """The request with one network used in another way.

        Raises:
            ValueError: it has no network of that name.
        """
        if name not in (use.name for use in self.networks):
            there = ", ".join(use.name for use in self.networks) or "none"
            raise InputError(f"there is no network {name!r} in the picture; there are: {there}")
        called = self.called({}, "choose it as well")  # what the tags say of the others stays
        networks = tuple(replace(use, **changes) if use.name == name else use for use in called.networks)
        return replace(self, networks=networks, prompt=self.text)

    def seeds(self) -> list[int]:
        """Every picture's seed."""
        return [(self.seed + number) % (SEED[1] + 1) for number in range(self.batch)]

    def to_json(self) -> dict[str, Any]:
        """All of it as it is kept in a picture; files and folders by their names alone."""
        return {
            "model": self.model_name or self.model.name,
            "prompt": self.prompt,
            "negative": self.negative,
            "networks": [
                {"name": use.name, "strength": use.strength, "parts": dict(use.parts), "styles": dict(use.styles)}
                for use in self.networks
            ],
            "seed": self.seed,
            "steps": self.steps,
            "guidance": self.guidance,
            "width": self.width,
            "height": self.height,
        }


def _finite(name: str, number: Any) -> None:
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not math.isfinite(number):
        raise SettingError(name, f"must be a finite number, not {shown(number)}")
