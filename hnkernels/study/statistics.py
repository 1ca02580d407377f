"""Means over seeds, and whether two settings differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hnkernels.errors import InputError


class Estimate(NamedTuple):
    """A mean with its standard error, which is NaN for a single value."""

    mean: float
    standard_error: float

    @property
    def is_real(self) -> bool:
        """Whether it is more than two standard errors from 0."""
        return abs(self.mean) > 2 * self.standard_error


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values, and its standard error.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise InputError("there is no value to take the mean of; give at least one")
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(statistics.fmean(values), error)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """The mean difference to a baseline over the seeds that both have; ``None`` if there is no such seed."""
    differences = [value - baseline[seed] for seed, value in sorted(values.items()) if seed in baseline]
    return estimate(differences) if differences else None
