"""All but one of these run in Triton's interpreter: ``TRITON_INTERPRET=1 python -m pytest tests/triton``."""

import pytest
import torch

from hnkernels.triton.target import interpreting


@pytest.fixture(autouse=True)
def _query_comes_along(monkeypatch):
    """The interpreter gets through the kernel that the compiler of Triton 3.2 does not."""
    if interpreting():
        monkeypatch.setattr("hnkernels.ops.fused.QUERY_COMES_ALONG", True)


@pytest.fixture(autouse=True)
def _poisoned():
    """Fills what ``torch.empty`` returns with NaN, so that a value that no kernel wrote shows up."""
    deterministic, fill = (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill
