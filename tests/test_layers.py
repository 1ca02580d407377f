"""Imports point down: from the adapter to the operations, from these to the kernels and the networks, never back."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "hnkernels"
BELOW = {
    "network": {"errors", "wording"},
    "triton": {"errors", "network", "wording"},
    "ops": {"errors", "network", "triton", "wording"},
}


def files(folder: str) -> Iterator[tuple[str, Path]]:
    """Every module of a folder, with its name."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = ("hnkernels", *path.relative_to(ROOT).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path: Path) -> set[str]:
    """The modules of hnkernels that a file imports, wherever in it, for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("hnkernels.")}


@pytest.mark.parametrize("folder", BELOW)
def test_a_folder_imports_from_below_alone(folder):
    for name, path in files(folder):
        others = {module.split(".")[1] for module in imported(path)} - {folder}
        assert others <= BELOW[folder], f"{name} imports from {others - BELOW[folder]}"


@pytest.mark.parametrize("folder", [*BELOW, "adapter"])
def test_no_two_files_of_a_folder_need_each_other(folder):
    known = {name for name, path in files(folder) if path.name != "__init__.py"}
    graph = {name: imported(path) & known for name, path in files(folder) if name in known}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, and names the circle
