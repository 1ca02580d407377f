"""What every test of training starts from."""

import pytest

from hnkernels.training.progress import reporter


@pytest.fixture
def with_report():
    """The runs of this test write their reports."""


@pytest.fixture(autouse=True)
def _without_report(request, monkeypatch):
    """Runs write no report, which takes matplotlib longer than all their steps; tests that look at it ask for it."""
    if "with_report" not in request.fixturenames:
        monkeypatch.setattr(reporter, "write_report", lambda folder: folder)
