"""All but one of these run in Triton's interpreter: ``TRITON_INTERPRET=1 python -m pytest tests/triton``."""

from pathlib import Path

import pytest
import torch

from hnkernels.triton.support import interpreting

_COMPILED = "test_compiled.py"  # runs without the interpreter, whose kernels cannot be compiled

collect_ignore = [
    file.name for file in Path(__file__).parent.glob("test_*.py") if (file.name == _COMPILED) == interpreting()
]


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
