"""The polynomials of ``hnkernels/triton/kernels/activations.py``: ``python -m benchmarks.activation_fits`` prints them.

Each is the minimax fit of a function by Lawson's reweighted least squares: of all polynomials of its degree the one
whose largest weighted error is smallest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_POINTS, _ROUNDS = 900, 3000

_AT_0 = float(np.float32(math.sqrt(1.193)))
"""Of the root of what approximates sinh(x)/x, which is its square less ``_AT_0² - 1``, so that it is 1 at 0 in fp32.

1.193 is in whole thousandths. The largest error is as small here as anywhere near, the usual one smaller.
"""


@dataclass(frozen=True)
class Fit:
    """``f ≈ Σ cᵢ uⁱ`` at the points u.

    Attributes:
        name: the device function that evaluates it.
        u, f: where and what; float64.
        weight: that of the error.
        degree: of the polynomial.
        constant: c₀, where it is not fitted.
    """

    name: str
    u: np.ndarray
    f: np.ndarray
    weight: np.ndarray
    degree: int
    constant: float | None = None


def solve(fit: Fit) -> tuple[np.ndarray, float]:
    """The coefficients, lowest first, and the largest weighted error."""
    scale = np.abs(fit.u).max()
    first = 0 if fit.constant is None else 1
    powers = (fit.u[:, None] / scale) ** np.arange(first, fit.degree + 1)
    rows, target = powers * fit.weight[:, None], (fit.f - (fit.constant or 0.0)) * fit.weight
    share = np.full(len(target), 1.0 / len(target))
    best, smallest = np.zeros(powers.shape[1]), math.inf
    for _ in range(_ROUNDS):
        root = np.sqrt(share)
        found = np.linalg.lstsq(rows * root[:, None], target * root, rcond=None)[0]
        errors = np.abs(rows @ found - target)
        if errors.max() < smallest:
            best, smallest = found, errors.max()
        share *= errors
        share /= share.sum()
    best = best / scale ** np.arange(first, fit.degree + 1)
    return (best if fit.constant is None else np.concatenate([[fit.constant], best])), float(smallest)


def fits() -> list[Fit]:
    """All of them."""
    unit = (1.0 - np.cos(np.linspace(0.0, np.pi, _POINTS)[1:])) / 2  # dense at the ends
    b = 7.0 * unit
    phi = np.vectorize(math.erfc)(b / math.sqrt(2.0)) / 2
    x = 9.0 * unit
    sinh = np.sinh(x) / x
    root = np.sqrt(sinh + _AT_0**2 - 1.0)
    return [
        # Relative to Φ(-b) while that is above 0.1, to 0.1 beyond.
        Fit("_normal_tail", b, (np.log2(phi) + 1.0) / b, phi * math.log(2.0) * b / np.maximum(phi, 0.1), 7),
        # See _AT_0. Relative to tanh, which hardly changes with sinh where that is large.
        Fit("_tanh", x * x, root, 2.0 * root / (sinh * np.cosh(x) ** 2), 3, _AT_0),
        Fit("_log1p_of_exp_minus_abs", unit, np.log1p(unit) / unit, unit / np.log1p(unit), 8, 1.0),
        Fit("_expm1", -0.5 * unit, np.expm1(-0.5 * unit) / (-0.5 * unit), -0.5 * unit / np.expm1(-0.5 * unit), 5, 1.0),
    ]


def main() -> None:
    """Print the coefficients, highest first, as the device code evaluates them, and their errors."""
    for fit in fits():
        coefficients, error = solve(fit)
        print(fit.name, ", ".join(f"{c:.9g}" for c in coefficients[::-1]), f"error {error:.1e}")


if __name__ == "__main__":
    main()
