"""Marks for tests of what holds with some versions only of PyTorch and Triton."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

_PINNED = dict(
    line.strip().split("==")
    for line in (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
)


def _release(package: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version(package).split("+")[0].split(".")[:2])
    except ImportError:
        return ()


def earlier(package: str, release: tuple[int, int]) -> bool:
    """Whether this version of the package is one before that release."""
    return _release(package) < release


counted = pytest.mark.skipif(
    any(_release(name) != tuple(map(int, _PINNED[name].split(".")[:2])) for name in ("torch", "triton")),
    reason="counts what the versions of constraints.txt make of it; others compile differently",
)
compiles_beforehand = pytest.mark.skipif(
    earlier("triton", (3, 3)), reason="kernels are compiled without a launch from Triton 3.3 on"
)
compiles_models = pytest.mark.skipif(
    earlier("torch", (2, 8)),
    reason="PyTorch 2.6 and 2.7 cut the graph at a hypernetwork: tests/adapter/test_compiled_in_pieces.py",
)
