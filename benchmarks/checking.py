"""Correct before fast: what a provider computes, against the truth. A provider that is wrong is not timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

TOLERANCE = {False: 2e-6, True: 1e-5}
"""Relative Frobenius error that fp32 is allowed against float64: of results, of gradients."""

AGAINST_EAGER = 1.2
"""In any dtype as much is allowed as eager PyTorch's own error, times this."""

MODEL_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Of a whole UNet's output between two orders of summation, where a float64 truth would take too long."""


@dataclass(frozen=True)
class Verdict:
    """How wrong a provider is.

    Attributes:
        error: the largest relative Frobenius error of its results.
        allowed: the largest that is accepted.
    """

    error: float
    allowed: float

    @property
    def green(self) -> bool:
        return self.error <= self.allowed  # also false for nan


def check(
    results: Mapping[str, Sequence[Tensor]], truth: Sequence[Tensor], baseline: str, least_allowed: float
) -> dict[str, Verdict]:
    """A verdict on every provider.

    Args:
        results: provider → what it computed.
        truth: what it should have.
        baseline: the provider whose own error is allowed to the others.
        least_allowed: error that is allowed in any case.
    """
    errors = {name: _error(found, truth) for name, found in results.items()}
    allowed = max(least_allowed, AGAINST_EAGER * errors.get(baseline, 0.0))
    return {name: Verdict(error, allowed) for name, error in errors.items()}


def _error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    if [t.shape for t in found] != [t.shape for t in truth]:
        return float("inf")
    return max((_relative(a, b) for a, b in zip(found, truth, strict=True)), default=0.0)


def _relative(found: Tensor, truth: Tensor) -> float:
    found, truth = found.detach().double(), truth.detach().double()
    norm = truth.norm().item()
    return (found - truth).norm().item() / (norm if norm > 0 else 1.0)
