"""Compiled models: one that was compiled without a network must be compiled again to act with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from hnkernels.integrations.patcher.context_patch import ContextPatch

WRAPPED = "apply_model"
"""ComfyUI's name for the call of the model that wrappers are put around."""


class CompiledAgain:
    """A wrapper of the model's call that sees at the first one whether the patches are reached.

    TorchCompileModel leaves the model's options out of what a graph depends on, so that a graph that was made without
    patches serves a model that has some, and they would silently not act. A graph made with patches is not taken for
    a model without.
    """

    def __init__(self, patches: Iterable[ContextPatch]):
        self._patches = tuple(patches)
        self._seen = False

    def __call__(self, executor: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self._seen:
            return executor(*args, **options)
        self._seen = True
        for patch in self._patches:
            patch.reached = False
        result = executor(*map(_copied, args), **{name: _copied(value) for name, value in options.items()})
        if any(patch.reached for patch in self._patches):
            return result
        torch.compiler.reset()
        return executor(*args, **options)


def _copied(value: Any) -> Any:
    """A ControlNet's outputs, lists in a dict, which the model empties, as a copy; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return {key: list(each) if isinstance(each, list) else each for key, each in value.items()}
