"""The display of progress: a bar on a terminal, few lines elsewhere, and never the end of a run."""

import errno
import io
import sys

import pytest

from hnkernels.training.progress.bar import Progress


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Broken(io.StringIO):
    def write(self, text):
        raise OSError(errno.EPIPE, "Broken pipe")


class BrokenTerminal(Broken):
    def isatty(self):
        return True


METRICS = {"loss": 9.0, "mean_loss": 0.25, "learning_rate": 1e-4}


def run(steps, seconds, stream, clock=None, **options):
    clock = clock or Clock()
    with Progress(1000, stream=stream, clock=clock, **options) as progress:
        for _ in range(steps):
            clock.now += seconds
            progress.update(METRICS)


def test_elsewhere_there_is_a_line_every_ten_seconds_and_one_at_the_end():
    stream = io.StringIO()
    run(95, 0.25, stream)
    assert stream.getvalue().splitlines() == [
        "step 40/1000, 4.00 step/s, loss 0.2500, lr 1.0e-04",
        "step 80/1000, 4.00 step/s, loss 0.2500, lr 1.0e-04",
        "step 95/1000, 4.00 step/s, loss 0.2500, lr 1.0e-04",
    ]


def test_a_slow_step_has_a_line_of_its_own():
    stream = io.StringIO()
    run(2, 50, stream)
    assert [line.split(",")[:2] for line in stream.getvalue().splitlines()] == [
        ["step 1/1000", " 0.02 step/s"],
        ["step 2/1000", " 0.02 step/s"],
    ]


def test_a_resumed_run_counts_on_and_its_rate_is_its_own():
    stream = io.StringIO()
    run(10, 1, stream, initial=500)
    assert stream.getvalue() == "step 510/1000, 1.00 step/s, loss 0.2500, lr 1.0e-04\n"


def test_the_step_may_be_given():
    stream, clock = io.StringIO(), Clock()
    with Progress(1000, stream=stream, clock=clock) as progress:
        clock.now += 10
        progress.update({"step": 20, "loss": float("nan")})
    assert stream.getvalue() == "step 20/1000, 2.00 step/s, loss nan\n"


def test_before_the_first_step_there_is_no_loss_to_show():
    stream, clock = io.StringIO(), Clock()
    with Progress(1000, stream=stream, clock=clock) as progress:
        clock.now += 10
        progress.update({"step": 0, "validation_loss": 0.5})
    assert stream.getvalue() == "step 0/1000, 0.00 step/s, validation 0.5000\n"


def test_the_last_validation_stays_in_view():
    stream, clock = io.StringIO(), Clock()
    with Progress(1000, stream=stream, clock=clock) as progress:
        progress.update({**METRICS, "validation_loss": 0.5})
        for _ in range(2):
            clock.now += 10
            progress.update(METRICS)
    assert [line.rpartition(", ")[2] for line in stream.getvalue().splitlines()] == ["validation 0.5000"] * 2


def test_a_clock_that_jumps_back_does_not_stop_the_lines():
    stream, clock = io.StringIO(), Clock()
    with Progress(1000, stream=stream, clock=clock) as progress:
        clock.now = -5000.0
        for _ in range(21):
            clock.now += 1
            progress.update(METRICS)
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 11/1000", "step 21/1000"]
    assert all("1.00 step/s" in line for line in lines)


def test_a_clock_that_jumps_ahead_or_stands_still_is_not_an_error():
    stream, clock = io.StringIO(), Clock()
    with Progress(1000, stream=stream, clock=clock) as progress:
        progress.update(METRICS)
        clock.now = 1e12
        progress.update(METRICS)
        progress.update(METRICS)
    assert stream.getvalue().splitlines() == [
        "step 2/1000, 0.00 step/s, loss 0.2500, lr 1.0e-04",
        "step 3/1000, loss 0.2500, lr 1.0e-04",
    ]


def test_notes_are_lines():
    stream = io.StringIO()
    with Progress(10, stream=stream, clock=Clock()) as progress:
        progress.note("wrote a checkpoint")
    assert stream.getvalue() == "wrote a checkpoint\n"


def test_a_terminal_has_a_bar_with_notes_above_it():
    stream = Terminal()
    with Progress(10, initial=2, stream=stream) as progress:
        for _ in range(8):
            progress.update({**METRICS, "validation_loss": 0.5})
        progress.note("wrote a checkpoint")
    shown = stream.getvalue()
    assert "10/10" in shown
    assert "loss 0.2500, lr 1.0e-04, validation 0.5000" in shown
    assert "wrote a checkpoint\n" in shown
    assert "step 10/10" not in shown


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_disabled_it_shows_nothing(kind):
    stream = kind()
    with Progress(10, enabled=False, stream=stream, clock=Clock()) as progress:
        progress.update(METRICS)
        progress.note("a note")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", [Broken, BrokenTerminal])
def test_a_stream_that_breaks_does_not_end_the_run(kind):
    run(50, 10, kind())
    with Progress(10, stream=kind(), clock=Clock()) as progress:
        progress.note("a note")
        progress.update(METRICS)


def test_a_stream_that_is_closed_does_not_end_the_run():
    for kind in (io.StringIO, Terminal):
        stream, clock = kind(), Clock()
        with Progress(10, stream=stream, clock=clock) as progress:
            stream.close()
            clock.now += 20
            progress.update(METRICS)
        run(3, 20, stream)


def test_it_writes_to_stderr_and_to_nothing_where_there_is_none(capsys, monkeypatch):
    run(1, 10, None)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("step 1/1000")
    monkeypatch.setattr(sys, "stderr", None)
    run(1, 10, None)


def test_an_error_in_the_run_shows_where_it_was():
    stream = io.StringIO()

    def interrupted():
        with Progress(10, stream=stream, clock=Clock()) as progress:
            progress.update(METRICS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().startswith("step 1/10")
