"""A validation's losses, paired with the base model's, and what they are sure of."""

import json
import math
import statistics

import numpy as np
import pytest

from hnkernels.training.progress.measured import Measured

LOSSES = [[0.1, 0.3], [0.4, 0.6], [0.2, 0.2]]
BASE = [[0.2, 0.3], [0.5, 0.6], [0.4, 0.2]]


def test_the_numbers_are_those_of_the_definition():
    measured = Measured(np.array(LOSSES), np.array(BASE))
    means = [0.2, 0.5, 0.2]
    differences = [-0.05, -0.05, -0.1]
    assert measured.loss == pytest.approx(0.3)
    assert measured.base_loss == pytest.approx(2.2 / 6)
    assert measured.difference == pytest.approx(statistics.mean(differences))
    assert measured.standard_error == pytest.approx(statistics.stdev(means) / 3**0.5)
    assert measured.difference_standard_error == pytest.approx(statistics.stdev(differences) / 3**0.5)


def test_draws_of_one_picture_do_not_count_as_pictures():
    few = Measured(LOSSES, BASE)
    many = Measured(np.repeat(LOSSES, 50, axis=1), np.repeat(BASE, 50, axis=1))
    assert many.standard_error == pytest.approx(few.standard_error)
    assert many.difference_standard_error == pytest.approx(few.difference_standard_error)


def test_what_pictures_have_in_common_cancels_in_the_difference():
    generator = np.random.default_rng(0)
    base = generator.normal(1, 0.5, (40, 1)) + generator.normal(0, 0.01, (40, 8))
    measured = Measured(base - 0.02 + generator.normal(0, 0.01, base.shape), base)
    assert measured.difference == pytest.approx(-0.02, abs=4 * measured.difference_standard_error)
    assert measured.difference_standard_error < measured.standard_error / 50


def test_the_standard_error_is_how_much_the_mean_of_other_pictures_differs():
    generator = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(400):
        pictures = generator.normal(1, 0.3, (25, 1)) + generator.normal(0, 0.2, (25, 4))
        measured = Measured(pictures, pictures)
        means.append(measured.loss)
        errors.append(measured.standard_error)
    assert np.std(means) == pytest.approx(np.mean(errors), rel=0.15)  # three standard deviations of such an estimate


def test_one_picture_has_no_standard_error():
    measured = Measured([[0.1, 0.2]], [[0.2, 0.2]])
    assert measured.loss == pytest.approx(0.15)
    assert math.isnan(measured.standard_error)
    assert math.isnan(measured.difference_standard_error)


def test_sums_are_float64s():
    losses = np.full((1000, 10), 0.1, np.float16)
    measured = Measured(losses, losses)
    assert measured.loss == pytest.approx(float(np.float16(0.1)), rel=1e-14)
    assert measured.difference == 0


def test_the_losses_cannot_be_changed_afterwards():
    losses = np.array(LOSSES)
    measured = Measured(losses, BASE)
    losses[0, 0] = 9
    assert measured.losses[0, 0] == 0.1
    with pytest.raises(ValueError, match="read-only"):
        measured.losses[0, 0] = 9


def test_json_keeps_every_bit():
    losses = np.random.default_rng(2).normal(size=(5, 3))
    again = Measured.from_json(Measured(losses, -losses).to_json())
    assert np.array_equal(again.losses, losses)
    assert np.array_equal(again.base, -losses)


def test_losses_that_are_not_finite_are_null_in_json():
    text = Measured([[math.nan, 1.0], [math.inf, 2.0]], [[1, 2], [3, 4]]).to_json()
    assert json.loads(text)["losses"] == [[None, 1.0], [None, 2.0]]
    again = Measured.from_json(text)
    assert np.isnan(again.losses[:, 0]).all()
    assert math.isnan(again.loss)


def test_a_row_is_what_the_log_of_validations_holds():
    measured = Measured(LOSSES, BASE)
    row = measured.row(300, training_loss=0.25)
    assert row["step"] == 300
    assert row["training_loss"] == 0.25
    for key in ("loss", "standard_error", "base_loss", "difference", "difference_standard_error"):
        assert row[key] == getattr(measured, key)
    assert math.isnan(measured.row(1)["training_loss"])


@pytest.mark.parametrize(
    ("losses", "base", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], r"losses must be \[pictures, draws\], at least one of each, not \[2\]"),
        (np.zeros((0, 3)), np.zeros((0, 3)), r"not \[0, 3\]"),
        (np.zeros((3, 0)), np.zeros((3, 0)), r"not \[3, 0\]"),
        (np.zeros((3, 2)), np.zeros((2, 3)), r"losses are \[3, 2\] and base \[2, 3\]; measure both"),
        ([[1.0], [1.0, 2.0]], [[1.0]], "losses must be numbers"),
        ([["a"]], [[1.0]], "losses must be numbers"),
        ([[1.0]], None, r"base must be \[pictures, draws\]"),
        ([[10**400]], [[1.0]], "losses must be numbers"),
    ],
)
def test_what_is_not_a_pair_of_tables_is_refused(losses, base, message):
    with pytest.raises(ValueError, match=message):
        Measured(losses, base)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "1", "[" * 10**5),
        '{"losses": [[1]]}',
        '{"losses": [[1]], "base": [[1]], "x": 1}',
        '{"losses": 1, "base": 1}',
        '{"losses": [["a"]], "base": [[1]]}',
        '{"losses": {"a": 1}, "base": [[1]]}',
    ],
)
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match=r"must be"):
        Measured.from_json(text)
