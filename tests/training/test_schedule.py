"""A1111's step-schedule notation."""

import pytest

from hnkernels.training import Schedule


def values(text, max_steps):
    schedule = Schedule(text, max_steps)
    return [schedule.at(step) for step in range(max_steps)]


def test_each_rate_holds_until_its_step():
    assert values("3:2, 2:4, 1", 6) == [3, 3, 2, 2, 1, 1]


@pytest.mark.parametrize("text", ["5e-5", "5e-5:-1", 5e-5, " 5e-5 "])
def test_a_bare_rate_or_minus_one_runs_to_the_end(text):
    assert values(text, 3) == [5e-5] * 3


@pytest.mark.parametrize(("text", "expected"), [("1:1, 2:-1, 3:2", [1, 2, 2]), ("1, 2:2", [1, 1, 1])])
def test_what_follows_a_bare_rate_or_minus_one_does_not_count_and_is_named(text, expected):
    with pytest.warns(UserWarning, match="to the end; the rest is not used"):
        assert values(text, 3) == expected


@pytest.mark.parametrize("text", ["1:2, 2:3,", "1:2,, 2:3", ",1:2, 2:3, ,"])
def test_empty_parts_are_skipped(text):
    assert values(text, 4) == [1, 1, 2, None]


@pytest.mark.parametrize("text", ["3:2,2:4,1", "3:2,2:4,1e0", "3:2,2:4,1.0"])
def test_spaces_are_not_needed(text):
    assert values(text, 5) == [3, 3, 2, 2, 1]


def test_running_out_of_segments_ends_the_schedule():
    assert values("1:1, 2:2", 4) == [1, 2, None, None]


def test_an_until_step_beyond_the_end_is_clamped():
    schedule = Schedule("1:100, 2:200", 10)
    assert schedule.segments == [(1.0, 10)]
    assert schedule.at(9) == 1
    assert schedule.at(10) is None


def test_the_last_value_may_be_held():
    schedule = Schedule("1:1, 2:2,", 4)
    assert [schedule.held_at(step) for step in range(4)] == [1, 2, 2, 2]


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_passed_segments_are_skipped_on_resume(step):
    assert Schedule("3:2, 2:4", 4).at(step) == [3, 3, 2, 2][step]


@pytest.mark.parametrize(
    "text",
    ["", ",", " , ,", "fast", "1:2:3", "1:x", "1:0", "1:-2", "-1", "nan", "inf:5", "1:2.5", "1:2, x", "1, x"],
)
def test_what_cannot_be_read_is_refused_and_named(text):
    with pytest.raises(ValueError, match="schedule"):
        Schedule(text, 10)


@pytest.mark.parametrize("value", [None, True, [1e-5], {"1": 2}, float("nan"), -1.0])
def test_what_is_neither_text_nor_a_number_is_refused(value):
    with pytest.raises(ValueError, match="schedule"):
        Schedule(value, 10)


@pytest.mark.parametrize(
    "text",
    ["0,00005", "0,5", "1,5e-5", "0,00005:100, 0,000005:1000", "1:5, 0,1", "0, 00005", "1:1,000", "1:1,500"],
)
def test_a_comma_inside_a_number_is_refused(text):
    with pytest.raises(ValueError, match="comma inside a number"):
        Schedule(text, 10)


@pytest.mark.parametrize("text", ["1:2, 2:1", "1:2, 2:2"])
def test_steps_must_rise(text):
    with pytest.raises(ValueError, match="steps must rise"):
        Schedule(text, 10)


def test_a_long_schedule_is_shown_cut():
    with pytest.raises(ValueError, match="must be a finite number") as caught:
        Schedule("9" * 5000, 10)
    assert len(str(caught.value)) < 400
