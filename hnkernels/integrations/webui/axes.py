"""Axes for the web UI's grids of pictures (X/Y/Z plot)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import scripts  # the web UI's own

from hnkernels.integrations.webui.network import KIND, SESSION

_MODULES = ("xyz_grid.py", "scripts.xyz_grid")


def add() -> None:
    """Adds the axes to the script of grids, if the web UI has it and they are not there yet."""
    grid = next((data.module for data in scripts.scripts_data if data.script_class.__module__ in _MODULES), None)
    if grid is None:
        return
    known = {option.label for option in grid.axis_options}
    option = grid.AxisOption
    own = [
        option("[hnkernels] Hypernetwork", str, _name, confirm=_known, choices=lambda: ["None", *SESSION.files.all()]),
        option("[hnkernels] Strength", float, _setting("strength")),
        option("[hnkernels] Start", float, _setting("start")),
        option("[hnkernels] End", float, _setting("end")),
    ]
    grid.axis_options.extend(axis for axis in own if axis.label not in known)


def _name(p: Any, name: str, names: list[str]) -> None:
    """Adds a hypernetwork to the prompt of a cell."""
    if name != "None":
        p.prompt = f"{p.prompt}<{KIND}:{name}:1>"


def _known(p: Any, names: list[str]) -> None:
    known = SESSION.files.all()
    if unknown := [name for name in names if name != "None" and name not in known]:
        raise RuntimeError(f"there is no hypernetwork {unknown[0]!r}; there are: {', '.join(known) or 'none'}")


def _setting(name: str) -> Callable[[Any, float, list[float]], None]:
    """Sets a value of the panel for a cell."""
    return lambda p, value, values: setattr(p, f"hnkernels_{name}", value)
