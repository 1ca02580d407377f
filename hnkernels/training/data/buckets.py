"""The sizes that pictures of different aspect ratios are trained at."""

from __future__ import annotations

import math
from bisect import bisect
from fractions import Fraction

from hnkernels.errors import InputError
from hnkernels.wording import shown

Size = tuple[int, int]  # width and height in pixels


class Buckets:
    """A set of sizes with about the area of a square, from portrait to landscape.

    For every width and for every height that is a multiple of ``step``, the set holds the size whose other side is the
    largest multiple of ``step`` with which the area stays within ``resolution²``, as long as the longer side is at most
    ``max_aspect`` times the shorter. The largest square is always there.

    What is cropped: a picture is scaled until it covers its size, and what stands out on one pair of sides is cut off.
    That is a fraction ``1 - exp(-|log(a / s)|)`` of its pixels, with ``a`` its aspect ratio and ``s`` that of the size.
    Between two neighbouring sizes of aspects ``s < t`` it is at most ``1 - sqrt(s / t)``: with aspects up to 2 this is
    12.2 % at 512 pixels in steps of 64, 6.5 % at 1024 pixels in steps of 64, and 3.3 % at 1024 pixels in steps of 32.
    Beyond the outermost size it is ``1 - s / a``, without a limit.

    Args:
        resolution: side in pixels of the square whose area no size exceeds.
        step: both sides are multiples of it, in pixels.
        max_aspect: longer side by shorter side, at most.

    Attributes:
        sizes: (width, height) in pixels, from the narrowest to the widest aspect ratio.

    Raises:
        ValueError: no size fits.
    """

    def __init__(self, resolution: int, step: int = 64, max_aspect: float = 2.0):
        if not 1 <= step <= resolution:
            raise InputError(
                f"no size with sides in multiples of {shown(step)} pixels fits into the area of resolution "
                f"{shown(resolution)}; choose a step from 1 to the resolution"
            )
        if not max_aspect >= 1:
            raise InputError(f"the largest aspect ratio must be a number >= 1, not {shown(max_aspect)}")
        side = resolution // step * step
        sizes = {(side, side)}
        # From width <= max_aspect · height and width · height <= resolution².
        longest = math.isqrt(int(resolution**2 * min(max_aspect, resolution)))
        for one in range(step, longest + 1, step):
            other = resolution**2 // one // step * step
            if other and max(one, other) <= max_aspect * min(one, other):
                sizes |= {(one, other), (other, one)}
        # Of equal aspects the largest counts.
        by_aspect = {Fraction(*size): size for size in sorted(sizes)}
        self._aspects = sorted(by_aspect)
        self.sizes: tuple[Size, ...] = tuple(by_aspect[aspect] for aspect in self._aspects)

    def assign(self, width: int, height: int) -> Size:
        """The size at which a picture of ``width`` times ``height`` pixels loses least to cropping.

        Raises:
            ValueError: the picture has no pixels.
        """
        if width < 1 or height < 1:
            raise InputError(f"a picture must be at least 1 pixel wide and high, not {shown((width, height))}")
        aspect = Fraction(width, height)
        right = bisect(self._aspects, aspect)
        candidates = range(max(right - 1, 0), min(right + 1, len(self.sizes)))
        return self.sizes[max(candidates, key=lambda i: _kept(aspect, self._aspects[i]))]


def _kept(aspect: Fraction, of_size: Fraction) -> Fraction:
    """The fraction of a picture's pixels that cropping leaves."""
    return min(aspect / of_size, of_size / aspect)
