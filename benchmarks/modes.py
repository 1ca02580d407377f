"""From a way of doing something to the call that is timed: without gradients, forward, backward, or both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.registry import Way

Call = Callable[[], list[Tensor]]
"""What is timed; returns what is checked."""


def _inference(way: Way, upstream: Sequence[Tensor]) -> Call:
    def call() -> list[Tensor]:
        with torch.no_grad():
            return _tensors(way.run())

    return call


def _forward(way: Way, upstream: Sequence[Tensor]) -> Call:
    return lambda: _tensors(way.run())


def _backward(way: Way, upstream: Sequence[Tensor]) -> Call:
    outputs = _tensors(way.run())
    return lambda: list(torch.autograd.grad(outputs, way.leaves, upstream, retain_graph=True))


def _both(way: Way, upstream: Sequence[Tensor]) -> Call:
    return lambda: list(torch.autograd.grad(_tensors(way.run()), way.leaves, upstream))


MODES: dict[str, Callable[[Way, Sequence[Tensor]], Call]] = {
    "inference": _inference,
    "new prompt": _inference,
    "same prompt": _inference,
    "forward": _forward,
    "backward": _backward,
    "forward + backward": _both,
    "recompute": _both,
    "training step": _forward,
}
"""Those of one meaning differ in what their benchmark builds for them."""


def has_backward(mode: str) -> bool:
    """Whether gradients come out."""
    return MODES[mode] in (_backward, _both)


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)
