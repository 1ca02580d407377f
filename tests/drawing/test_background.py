"""A drawing goes on by itself, tells what it does, and ends when it is stopped."""

import threading

import pytest

from hnkernels.drawing.artist import Stopped
from hnkernels.drawing.background import Drawing


def test_what_it_tells_is_followed_and_its_result_is_there():
    go = threading.Event()

    def work(stop, tell):
        tell("one")
        assert go.wait(30)
        tell("two")
        return 3

    drawing = Drawing(work)
    told = drawing.follow()
    assert next(told) == "one"
    assert drawing.running
    go.set()
    assert list(told) in (["two"], [])  # what came at once with the end is not told any more
    assert drawing.result() == 3
    assert not drawing.running


def test_it_is_stopped_and_who_follows_hears_of_it_at_once():
    step_at_hand = threading.Event()

    def work(stop, tell):
        assert stop.wait(30)
        assert step_at_hand.wait(30)
        raise Stopped

    drawing = Drawing(work)
    assert not drawing.stopping
    drawing.stop()
    assert drawing.stopping
    told = drawing.follow()
    assert next(told) is None
    step_at_hand.set()
    assert list(told) == []
    with pytest.raises(Stopped):
        drawing.result()


def test_a_fault_is_raised_where_the_result_is_asked_for():
    def work(stop, tell):
        raise ValueError("no")

    drawing = Drawing(work)
    assert list(drawing.follow()) == []
    with pytest.raises(ValueError, match="no"):
        drawing.result()


def test_it_goes_on_when_nobody_follows():
    go, done = threading.Event(), threading.Event()

    def work(stop, tell):
        tell("one")
        assert go.wait(30)
        done.set()

    drawing = Drawing(work)
    told = drawing.follow()
    next(told)
    told.close()
    go.set()
    assert done.wait(30)
