"""Means, standard errors and paired differences, by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnkernels.study.statistics import Estimate, estimate, paired


def test_a_mean_has_the_standard_error_of_independent_values():
    mean, error = estimate([1.0, 2.0, 6.0])
    assert mean == 3
    assert error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))


def test_a_single_value_has_no_standard_error_and_differs_from_nothing():
    found = estimate([5.0])
    assert found.mean == 5
    assert math.isnan(found.standard_error)
    assert not found.is_real


def test_no_value_has_no_mean():
    with pytest.raises(ValueError, match="give at least one"):
        estimate([])


@pytest.mark.parametrize(("estimated", "real"), [((0.3, 0.1), True), ((-0.3, 0.1), True), ((0.2, 0.1), False)])
def test_a_difference_is_real_beyond_two_standard_errors(estimated, real):
    assert Estimate(*estimated).is_real is real


def test_differences_are_paired_by_seed():
    found = paired({0: 2.0, 1: 12.0, 2: 5.0}, {0: 1.0, 1: 10.0, 3: 0.0})
    assert found == estimate([1.0, 2.0])
    assert paired({0: 1.0}, {1: 1.0}) is None


@given(st.lists(st.floats(-1, 1).map(lambda value: round(value, 3)), min_size=3, max_size=3))
def test_three_seeds_show_a_difference_only_if_they_agree_in_sign(values):
    mean, error = estimate(values)
    if abs(mean) > 2 * error + 1e-9:
        assert len({math.copysign(1, value) for value in values if value}) == 1
