"""What every test of training starts from."""

import signal

import pytest


@pytest.fixture
def with_report():
    """The runs of this test write their reports."""


@pytest.fixture(autouse=True)
def _without_report(request, monkeypatch):
    """Runs write no report, which takes matplotlib longer than all their steps; tests that look at it ask for it."""
    from hnkernels.training.progress import reporter

    if "with_report" not in request.fixturenames:
        monkeypatch.setattr(reporter, "write_report", lambda folder: folder)


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where a shell started the tests in the background, which then ignore it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
