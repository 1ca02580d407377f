"""What every test starts from: the same seed and one thread, so that a failure is the same on every machine."""

import pytest
import torch
from hypothesis import HealthCheck, settings

from hnkernels.triton.support import interpreting

if interpreting():
    from tests import fast_interpreter

    fast_interpreter.install()

# The cores of a CI machine are shared: a deadline would measure the neighbours.
settings.register_profile(
    "hnkernels", deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("hnkernels")


@pytest.fixture(autouse=True)
def _onednn_at_test_sizes(monkeypatch):
    monkeypatch.setattr("hnkernels.ops.onednn.LEAST_ELEMENTS", 0)


@pytest.fixture(autouse=True)
def _reproducible():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
