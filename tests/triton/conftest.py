"""All but one of these run in Triton's interpreter: ``TRITON_INTERPRET=1 python -m pytest tests/triton``."""

import pytest
import torch


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
