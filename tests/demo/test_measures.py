"""Slant, stroke width and ink of pictures of which they are known."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hnkernels.demo.glyphs import SIZE, SUPERSAMPLE, draw_mask, ink_to_rgb
from hnkernels.demo.measures import ink_share, slant, stroke_width
from hnkernels.demo.style_pictures import sheared, thickened

SIDE = SIZE * SUPERSAMPLE


def tangent(mask):
    return np.tan(np.radians(slant(ink_to_rgb(mask)[None])))


def ring(width, shade=255):
    mask = Image.new("L", (SIDE, SIDE), 0)
    box = (5 * SUPERSAMPLE, 5 * SUPERSAMPLE, SIDE - 5 * SUPERSAMPLE, SIDE - 5 * SUPERSAMPLE)
    ImageDraw.Draw(mask).ellipse(box, outline=shade, width=width * SUPERSAMPLE)
    return ink_to_rgb(mask)[None]


@pytest.mark.parametrize("digit", "0147")
@pytest.mark.parametrize("degrees", [-25, -10, 10, 25])
def test_a_shear_adds_its_angle_to_the_slant(digit, degrees):
    glyph = draw_mask(digit, "DejaVuSans.ttf", height=30.0, offset=(1.0, -1.0), angle=0.0)
    added = tangent(sheared(glyph, degrees)) - tangent(glyph)
    assert np.degrees(np.arctan(added)) == pytest.approx(degrees, abs=0.3)  # pixels are 1/10 of a digit's width


def test_upright_glyphs_have_no_slant_and_oblique_ones_that_of_their_font():
    upright, oblique = (
        np.stack([ink_to_rgb(draw_mask(digit, f"DejaVuSans{font}.ttf", 30.0, (0, 0), 0)) for digit in "0123456789"])
        for font in ("", "-Oblique")
    )
    assert abs(slant(upright)) < 2
    assert slant(oblique) - slant(upright) == pytest.approx(11, abs=1.5)  # DejaVu's italic angle


@pytest.mark.parametrize("width", [1, 2, 4])
def test_stroke_width_is_that_of_the_pen(width):
    assert stroke_width(ring(width)) == pytest.approx(width, rel=0.15)  # a ring of round pixels


def test_a_paler_pen_is_not_a_thinner_one():
    assert stroke_width(ring(3, shade=120)) == pytest.approx(stroke_width(ring(3)), rel=0.01)
    assert ink_share(ring(3, shade=120)) == pytest.approx(ink_share(ring(3)) * 120 / 255, rel=0.01)


def test_thickening_adds_to_the_width_and_thinning_takes_away():
    glyph = draw_mask("7", "DejaVuSans-Bold.ttf", 30.0, (0, 0), 0)
    thin, plain, thick = (stroke_width(ink_to_rgb(thickened(glyph, pixels))[None]) for pixels in (-0.75, 0, 0.75))
    assert plain - thin == pytest.approx(1.5, abs=0.4)
    assert thick - plain == pytest.approx(1.5, abs=0.4)


def test_ink_is_the_share_of_what_is_dark():
    half = np.full((1, SIZE, SIZE, 3), 255, dtype=np.uint8)
    half[:, : SIZE // 2] = 0
    assert ink_share(half) == 0.5


def test_an_empty_picture_has_no_slant_no_stroke_and_no_ink():
    white = np.full((2, SIZE, SIZE, 3), 255, dtype=np.uint8)
    assert (slant(white), stroke_width(white), ink_share(white)) == (0, 0, 0)
