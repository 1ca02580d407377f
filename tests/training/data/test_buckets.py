"""Sizes for pictures of different aspect ratios."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnkernels.training.data.buckets import Buckets

resolutions = st.integers(8, 2048)
steps = st.sampled_from([8, 16, 32, 64, 100])
aspects = st.one_of(st.just(1), st.floats(1, 8))
sides = st.integers(1, 10_000)


@st.composite
def buckets(draw):
    step = draw(steps)
    return Buckets(draw(resolutions.filter(lambda r: r >= step)), step, draw(aspects)), step


@pytest.mark.parametrize(
    ("resolution", "step", "landscapes"),
    [
        (512, 64, [(512, 512), (576, 448), (640, 384)]),
        (512, 128, [(512, 512), (640, 384)]),
        (1024, 64, [(1024, 1024), (1088, 960), (1152, 896), (1216, 832), (1280, 768), (1344, 768), (1408, 704)]),
    ],
)
def test_the_sizes_are_those_that_people_know(resolution, step, landscapes):
    sizes = Buckets(resolution, step, 2.0).sizes
    assert [size for size in sizes if size[0] >= size[1]] == landscapes
    assert sizes == tuple(sorted(sizes, key=lambda size: size[0] / size[1]))


@given(buckets(), st.data())
@settings(max_examples=60, deadline=None)
def test_no_picture_is_cropped_more_than_it_must_be(made, data):
    sizes = made[0].sizes
    width, height = data.draw(sides), data.draw(sides)

    def kept(size):
        return min(Fraction(width * size[1], height * size[0]), Fraction(height * size[0], width * size[1]))

    assert kept(made[0].assign(width, height)) == max(map(kept, sizes))


@given(resolutions, steps, aspects)
@settings(max_examples=60, deadline=None)
def test_sizes_are_as_large_as_area_and_step_allow(resolution, step, aspect):
    if resolution < step:
        return
    sizes = Buckets(resolution, step, aspect).sizes
    square = resolution // step * step
    assert (square, square) in sizes
    assert len({width / height for width, height in sizes}) == len(sizes)
    for width, height in sizes:
        assert (height, width) in sizes
        assert width % step == height % step == 0 < min(width, height)
        assert width * height <= resolution**2
        assert max(width, height) <= aspect * min(width, height)
        room = resolution**2 - width * height
        assert room < step * max(width, height) or (width, height) == (square, square)


@pytest.mark.parametrize(
    ("arguments", "lost"), [((512, 64, 2.0), 0.122), ((1024, 64, 2.0), 0.065), ((1024, 32, 2.0), 0.033)]
)
def test_within_the_aspects_no_more_is_lost_than_is_said(arguments, lost):
    aspects = [width / height for width, height in Buckets(*arguments).sizes]
    most = max(1 - math.sqrt(a / b) for a, b in itertools.pairwise(aspects))
    assert most <= lost < most + 0.001


def test_a_picture_of_a_size_in_the_set_gets_it():
    made = Buckets(1024)
    assert [made.assign(*size) for size in made.sizes] == list(made.sizes)
    assert made.assign(6000, 4000) == (1216, 832)  # a camera's 3:2
    assert made.assign(100, 10_000) == made.sizes[0]  # beyond the outermost


def test_an_aspect_of_one_leaves_the_square():
    assert Buckets(600, 64, 1.0).sizes == ((576, 576),)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((32, 64), "fits into the area of resolution 32; choose a step"), ((64, 0), "multiples of 0"),
     ((64, 8, 0.5), "must be a number >= 1, not 0.5"), ((64, 8, math.nan), "not nan")],
)  # fmt: skip
def test_what_gives_no_sizes_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Buckets(*arguments)


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_a_picture_without_pixels_is_refused(size):
    with pytest.raises(ValueError, match="at least 1 pixel"):
        Buckets(64).assign(*size)
