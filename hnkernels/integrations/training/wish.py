"""What another program asks to be trained."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from hnkernels.errors import InputError
from hnkernels.training.recipes import RECIPES
from hnkernels.wording import shown

_NAME = re.compile(r"[\w\-. ]{1,80}")


@dataclass(frozen=True)
class Wish:
    """What is to be trained.

    Attributes:
        model: folder of a diffusers pipeline, or a checkpoint in one file.
        data: folder of pictures with their captions.
        name: of the hypernetwork.
        recipe: one of ``RECIPES``.
        steps: how many; 0 for the recipe's.
        rate: learning rate, or a schedule as A1111 writes it; empty for the recipe's.

    Raises:
        ValueError: one of them cannot be.
    """

    model: Path
    data: Path
    name: str
    recipe: str = "style"
    steps: int = 0
    rate: str = ""

    def __post_init__(self):
        if not _NAME.fullmatch(self.name) or not self.name.strip(" ."):
            raise InputError(f"name must be 1 to 80 letters, digits, spaces and -_., not {shown(self.name)}")
        if self.recipe not in RECIPES:
            raise InputError(f"recipe must be one of {', '.join(RECIPES)}, not {shown(self.recipe)}")
        if self.steps < 0:
            raise InputError(f"steps must be 0, for those of the recipe, or more, not {self.steps}")
        if not self.data.is_dir():
            raise InputError(f"{self.data} is not a folder; name one with pictures and their captions")
        if not self.model.exists():
            raise InputError(f"the model {self.model} does not exist; choose another")

    def settings(self) -> dict[str, object]:
        """What is not the recipe's, as ``--config`` takes it."""
        rate: object = self.rate.strip()
        with contextlib.suppress(ValueError):  # which it is for a schedule
            rate = float(self.rate)
        training = {"max_steps": self.steps or None, "learning_rate": rate or None}
        return {"training": {key: value for key, value in training.items() if value is not None}, "network": {}}
