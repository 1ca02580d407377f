"""What encoder and weight generator are built of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hnkernels.errors import InputError


class ResidualMLP(nn.Module):
    """``x + W₂ silu(W₁ norm(x))`` with a hidden width of 2·H.

    Args:
        dim: H, last dimension of input and output.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def check_count(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuses what is not an integer from ``least`` to ``most``."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        to = "" if most is None else f" and at most {most}"
        raise InputError(f"{name} must be an integer >= {least}{to}, not {value!r}")
