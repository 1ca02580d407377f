"""Physical quantities of pictures of ink, where a classifier would have nothing to say: slant, stroke width, ink."""

from __future__ import annotations

import numpy as np


def ink(images: np.ndarray) -> np.ndarray:
    """Ink of every pixel, 0 for white and 1 for black: float64 [n, H, W] of uint8 [n, H, W, 3]."""
    return 1.0 - images.mean(axis=-1) / 255.0


def ink_share(images: np.ndarray) -> float:
    """Share of the area that is ink, mean over the pictures."""
    return float(ink(images).mean())


def slant(images: np.ndarray) -> float:
    """Lean to the right in degrees, mean over the pictures.

    A picture's is the angle whose tangent is -μ₁₁/μ₀₂, of the central moments of its ink. A shear by an angle s adds
    tan s to that tangent, exactly; what an upright glyph has of its own (-19° to 5° for digits, -1° on average) depends
    on its shape, so that only means over the same digits compare.
    """
    mass = ink(images)
    y, x = np.mgrid[: mass.shape[1], : mass.shape[2]].astype(np.float64)
    total = np.maximum(mass.sum(axis=(1, 2)), 1e-9)
    dx = x - ((mass * x).sum(axis=(1, 2)) / total)[:, None, None]
    dy = y - ((mass * y).sum(axis=(1, 2)) / total)[:, None, None]
    tangent = -(mass * dx * dy).sum(axis=(1, 2)) / np.maximum((mass * dy * dy).sum(axis=(1, 2)), 1e-9)
    return float(np.degrees(np.arctan(tangent)).mean())


def stroke_width(images: np.ndarray) -> float:
    """Width of the strokes in pixels, mean over the pictures: twice the ink by the length of its outline.

    The length is the total variation of the ink, so that neither softness nor shade of the ink matters.
    """
    mass = np.pad(ink(images), ((0, 0), (1, 1), (1, 1)))
    across, down = np.diff(mass, axis=2)[:, 1:], np.diff(mass, axis=1)[:, :, 1:]
    outline = np.hypot(across, down).sum(axis=(1, 2))
    return float((2.0 * mass.sum(axis=(1, 2)) / np.maximum(outline, 1e-9)).mean())
