"""Presets for training, from what ``hnkernels study`` has shown on the embedded model (docs/recipes.md)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hnkernels.errors import InputError
from hnkernels.wording import shown


@dataclass(frozen=True)
class Recipe:
    """Settings for a purpose. What a user sets goes before them.

    Args:
        purpose: what it is for.
        training: settings of ``TrainingConfig``.
        network: arguments of ``Hypernetwork``.
        why: a sentence for each of these settings.
    """

    purpose: str
    training: Mapping[str, Any]
    network: Mapping[str, Any]
    why: Mapping[str, str]

    def training_with(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a run.

        Args:
            own: the user's. What of the recipe would contradict them is left out: its scheduler where they have a
                schedule of the learning rate, its number of steps where they have one of epochs.
        """
        left_out = set()
        if isinstance(own.get("learning_rate"), str):
            left_out |= {"lr_scheduler", "lr_warmup_steps"}
        if "lr_scheduler" in own:
            left_out |= {"lr_warmup_steps"}
        if "max_epochs" in own:
            left_out |= {"max_steps"}
        settings = {name: value for name, value in self.training.items() if name not in left_out} | dict(own)
        steps = settings.get("max_steps")
        if "max_epochs" not in settings and isinstance(steps, int):
            settings["max_epochs"] = max(1, steps)  # an epoch has a step at least: the steps end the run
        return settings

    def network_with(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the network; ``own`` are the user's."""
        return {**self.network, **own}


_AS_MEASURED = "As in the runs of the study that this recipe is from."
_TENTH = (
    "contexts of Stable Diffusion are about ten times as wide as those that this was measured on, and the best rate "
    "there was not measured: look at the validation."
)
_COMMON: dict[str, Any] = {"lr_scheduler": "cosine", "lr_warmup_steps": 20, "caption_dropout": 0.1}
_COMMON_NETWORK: dict[str, Any] = {"layer_structure": [1, 2, 1], "activation": "silu", "init": "identity"}
_COMMON_WHY = {
    **dict.fromkeys(("lr_scheduler", "lr_warmup_steps", "caption_dropout"), _AS_MEASURED),
    "init": "With normal or xavier_normal fewer pictures were right; kaiming_normal showed no difference.",
    "activation": "The held-out loss was a little lower than with relu; the pictures showed no difference.",
}
_WIDTH_WHY = (
    "With half the width, or no hidden layer, fewer pictures were right; twice the width, or another hidden layer, "
    "showed no more of them."
)
_LAYERS_WHY = (
    "With self-attention alone 0.53 of the pictures were right in style and content, with both kinds 0.29, with "
    "cross-attention alone 0.13."
)

RECIPES: dict[str, Recipe] = {
    "style": Recipe(
        "A style, from dozens of pictures or more.",
        {
            **_COMMON,
            "target_layers": ["attn1"],
            "learning_rate": 5e-4,
            "batch_size": 4,
            "max_steps": 800,
        },
        _COMMON_NETWORK,
        {
            **_COMMON_WHY,
            "target_layers": _LAYERS_WHY,
            "learning_rate": f"A tenth of 0.005, with which batches of 4 had the lowest held-out loss; {_TENTH}",
            "batch_size": (
                "With the same pictures and rate, batches of 4 had a lower held-out loss than batches of 8 or 32."
            ),
            "max_steps": "Twice the steps of the baseline lowered the held-out loss; these are four times as many.",
            "layer_structure": _WIDTH_WHY,
        },
    ),
    "subject": Recipe(
        "One thing from a handful of pictures; with regularization_data, pictures of its class, less else changes.",
        {
            **_COMMON,
            "target_layers": ["attn1"],
            "learning_rate": 5e-4,
            "batch_size": 8,
            "max_steps": 200,
        },
        _COMMON_NETWORK,
        {
            **_COMMON_WHY,
            "target_layers": (
                "With self-attention alone 0.94 of the pictures of the subject were right and 0.43 of the others were "
                "changed, with both kinds 0.69 and 0.88."
            ),
            "learning_rate": f"A tenth of 0.005, with which more pictures were right than with 0.001; {_TENTH}",
            "batch_size": _AS_MEASURED,
            "max_steps": "After 100 steps 0.44 of the pictures were right, after 200 steps 0.69.",
            "layer_structure": "With half the width 0.54 of the pictures were right, with this one 0.69.",
        },
    ),
    "fast": Recipe(
        "A first look at a style, in a quarter of the steps.",
        {
            **_COMMON,
            "target_layers": ["attn1"],
            "learning_rate": 1e-3,
            "batch_size": 8,
            "max_steps": 200,
        },
        _COMMON_NETWORK,
        {
            **_COMMON_WHY,
            "target_layers": _LAYERS_WHY,
            "learning_rate": f"A tenth of 0.01, which had a lower held-out loss after 200 steps than 0.005; {_TENTH}",
            "batch_size": "The same pictures took 0.6 of the CPU time that they took in batches of 4.",
            "max_steps": "After 200 steps with self-attention alone 0.74 of the pictures were taken for the style.",
            "layer_structure": _WIDTH_WHY,
        },
    ),
}

DEFAULT = "style"
"""What ``hnkernels train`` takes if no recipe is named."""


def recipe_named(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        ValueError: there is no such recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(str(name), RECIPES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(
        f"there is no recipe {shown(name)}; {hint}accepted are {', '.join(RECIPES)}, and on the command line none"
    )
