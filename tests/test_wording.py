"""How error messages show a value."""

import pytest

from hnkernels.wording import shown


class Unprintable:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(("value", "text"), [("a", "'a'"), ([1, 2], "[1, 2]"), (None, "None")])
def test_a_value_is_shown_as_it_is_written(value, text):
    assert shown(value) == text


def test_where_there_is_no_repr_the_type_is_shown():
    assert shown(10**5000) == "a value of type int"  # Python writes integers of up to 4300 digits
    assert shown(Unprintable()) == "a value of type Unprintable"


@pytest.mark.parametrize("value", ["x" * 10**6, list(range(10**5)), b"x" * 1000], ids=["str", "list", "bytes"])
def test_a_long_value_is_cut(value):
    assert shown(value) == repr(value)[:200] + "…"
