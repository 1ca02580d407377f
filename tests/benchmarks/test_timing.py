"""Timing in turn: every provider once per round, in another order each time, as many rounds as the budget allows."""

from __future__ import annotations

import pytest

from benchmarks.measuring import Timings, interleave


def watched(names: str, **options) -> tuple[list[str], Timings]:
    """The order of the calls of providers a, b, …, and the timings."""
    order: list[str] = []
    providers = {name: [lambda name=name: order.append(name)] for name in names}
    return order, interleave(providers, seconds=0, **options)


def test_every_round_has_every_provider_and_begins_with_another():
    order, timings = watched("abc", least=3)
    rounds = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert rounds == ["abc", "bca", "cab"]
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_figure_may_be_the_sum_of_several_calls_in_turn():
    order, timings = watched("ab", least=1, calls=3)
    assert "".join(order) == "abbaab"
    assert len(timings.seconds["a"]) == 1


def test_the_figure_of_a_round_is_what_the_clock_says():
    ticks = iter(range(1, 100))
    timings = interleave({"a": [], "b": []}, seconds=0, least=2, clock=lambda runs: next(ticks))
    assert timings.seconds == {"a": [1, 4], "b": [2, 3]}
    assert timings.median("a") == 2.5


def test_calls_of_a_round_add_up():
    timings = interleave({"a": []}, seconds=0, least=1, calls=20, clock=lambda runs: 0.5)
    assert timings.seconds == {"a": [10.0]}


def test_the_budget_decides_how_many_rounds_and_short_ones_have_a_round_to_warm_up():
    order, timings = watched("a", least=2, most=4)
    assert len(order) == len(timings.seconds["a"]) == 2
    order = []
    timings = interleave({"a": [lambda: order.append("a")]}, seconds=1e9, least=2, most=4)
    assert len(order) == 1 + 4
    assert len(timings.seconds["a"]) == 4


def test_nothing_to_time_is_not_an_error():
    assert interleave({}, seconds=1).seconds == {}


@pytest.mark.parametrize(("seconds", "expected"), [([3.0], (3.0, 3.0)), ([1.0, 2.0, 3.0, 4.0, 5.0], (2.0, 4.0))])
def test_quartiles(seconds, expected):
    assert Timings({"a": seconds}).quartiles("a") == expected
