"""The numbers of one validation: losses of the network and of the base model on the same pictures and noise."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnkernels.errors import InputError
from hnkernels.wording import shown


@dataclass(frozen=True, eq=False)
class Measured:
    """Losses on held-out pictures, each at the same draws of noise and timestep for the network and the base model.

    Pictures are what is sampled: the draws of one picture share its content and its caption, so they are not
    independent, and a standard error over all of them would be too small. All standard errors are therefore over the
    pictures' means, and hold for other pictures of the same kind, at these draws.

    Args:
        losses: of the network, [pictures, draws], any numbers; float64 and read-only from then on.
        base: of the base model, paired with these.

    Raises:
        ValueError: they are not numbers in two dimensions of at least 1, or not of the same shape.
    """

    losses: NDArray[np.float64]
    base: NDArray[np.float64]

    def __post_init__(self):
        for name in ("losses", "base"):
            try:
                array = np.array(getattr(self, name), dtype=np.float64)
            except (TypeError, ValueError, OverflowError):
                given = shown(getattr(self, name))
                raise InputError(f"{name} must be numbers, [pictures, draws], not {given}") from None
            if array.ndim != 2 or not array.size:
                raise InputError(f"{name} must be [pictures, draws], at least one of each, not {list(array.shape)}")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.losses.shape != self.base.shape:
            raise InputError(
                f"losses are {list(self.losses.shape)} and base {list(self.base.shape)}; measure both on the same "
                "pictures and draws"
            )

    @property
    def loss(self) -> float:
        """Mean loss of the network."""
        return _mean(self.losses)

    @property
    def standard_error(self) -> float:
        """Of ``loss``; NaN with one picture."""
        return _standard_error(self.losses)

    @property
    def base_loss(self) -> float:
        """Mean loss of the base model: the line to beat."""
        return _mean(self.base)

    @property
    def difference(self) -> float:
        """Mean of the network's loss less the base model's; below 0 the network is better."""
        return _mean(self.losses - self.base)

    @property
    def difference_standard_error(self) -> float:
        """Of ``difference``, over the pictures' own differences; NaN with one picture.

        Most of what makes one picture's loss larger than another's does it to both models and cancels, so that it is
        far smaller than what the two standard errors add up to.
        """
        return _standard_error(self.losses - self.base)

    def row(self, step: int, training_loss: float = math.nan) -> dict[str, float]:
        """The row of ``progress.log.VALIDATION_COLUMNS``.

        Args:
            step: optimiser steps done.
            training_loss: the network's mean loss on pictures that it is trained on, at fixed draws too.
        """
        return {
            "step": step,
            "loss": self.loss,
            "standard_error": self.standard_error,
            "base_loss": self.base_loss,
            "difference": self.difference,
            "difference_standard_error": self.difference_standard_error,
            "training_loss": training_loss,
        }

    def to_json(self) -> str:
        """All losses, exactly; ``null`` for those that are not finite."""
        return json.dumps({name: _finite(getattr(self, name)) for name in ("losses", "base")}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Measured:
        """The inverse of ``to_json``; ``null`` becomes NaN.

        Raises:
            ValueError: the text is anything else.
        """
        try:
            content: Any = json.loads(text)
        except (ValueError, RecursionError, TypeError) as error:
            raise InputError(f"measured losses must be JSON as to_json writes it: {error}") from None
        if not isinstance(content, Mapping) or set(content) != {"losses", "base"}:
            raise InputError(f"measured losses must be a JSON object of 'losses' and 'base', not {shown(content)}")
        return cls(**content)


def _mean(losses: NDArray[np.float64]) -> float:
    return float(losses.mean())


def _standard_error(losses: NDArray[np.float64]) -> float:
    of_pictures = losses.mean(axis=1)
    if len(of_pictures) < 2:
        return math.nan
    return float(of_pictures.std(ddof=1) / math.sqrt(len(of_pictures)))


def _finite(losses: NDArray[np.float64]) -> list[list[float | None]]:
    return [[value if math.isfinite(value) else None for value in row] for row in losses.tolist()]
