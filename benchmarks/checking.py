"""Correct before fast: what a provider computes, against the truth. A provider that is wrong is not timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

TOLERANCE = {False: 2e-6, True: 1e-5}
"""Relative Frobenius error that fp32 is allowed against float64: of results, of gradients."""

AGAINST_EAGER = 1.2
"""In any dtype as much is allowed as eager PyTorch's own error, times this."""

AT_MOST = {"fp32": 1e-2, "fp16": 1e-1, "bf16": 3e-1}
"""And never more than this, be eager PyTorch as wrong as it may. So large because of gradients: where rounding decides
on which side of a kink of relu a value is, one element of the gradient is there or not."""

MODEL_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Of a whole UNet's output between two orders of summation, where a float64 truth would take too long."""

VANISHING = 1e-3
"""What is smaller than the largest result by this is taken to be as large as that, since it may be nothing but
rounding: the gradient of the bias that a network adds to all keys of an attention layer, which softmax does not see."""


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
    results: Mapping[str, Sequence[Tensor]], truth: Sequence[Tensor], baseline: str, least: float, most: float
) -> dict[str, Verdict]:
    """A verdict on every provider.

    Args:
        results: provider → what it computed.
        truth: what it should have.
        baseline: the provider whose own error is allowed to the others.
        least: error that is allowed in any case.
        most: error that is not.
    """
    errors = {name: largest_error(found, truth) for name, found in results.items()}
    allowed = max(least, min(AGAINST_EAGER * errors[baseline], most))
    return {name: Verdict(error, allowed) for name, error in errors.items()}


def largest_error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Of the results, each relative to its norm; infinite where shapes or number differ."""
    if [t.shape for t in found] != [t.shape for t in truth]:
        return float("inf")
    norms = [t.detach().double().norm().item() for t in truth]
    least = VANISHING * max(norms, default=0.0) or 1.0
    return max(
        (
            (a.detach().double() - b.detach().double()).norm().item() / max(norm, least)
            for a, b, norm in zip(found, truth, norms, strict=True)
        ),
        default=0.0,
    )
