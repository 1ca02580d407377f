"""A home to start from."""

import pytest

from hnkernels.home.folder import Home


@pytest.fixture
def home(tmp_path):
    """A new home, with nothing in it."""
    made = Home(tmp_path / "home")
    made.make()
    return made
