"""The extension's settings, in the web UI's own page of settings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from modules import paths, shared  # the web UI's own

ENABLED, HOME, PYTHON = "hnkernels_enabled", "hnkernels_home", "hnkernels_python"


def add(changed: Callable[[], None]) -> None:
    """Adds the settings; ``changed`` is called whenever the extension is switched on or off."""
    info = shared.OptionInfo
    options = {
        ENABLED: info(True, "Let hnkernels apply hypernetworks instead of the web UI", onchange=changed).info(
            "off: nothing of the web UI is changed"
        ),
        PYTHON: info("", "Python that trains").info("empty: the web UI's; it needs hnkernels[train]"),
        HOME: info("", "Folder of training runs").info("empty: the folder hnkernels beside the models"),
    }
    shared.options_templates.update(shared.options_section(("hnkernels", "Hypernetworks (hnkernels)"), options))


def enabled() -> bool:
    """Whether hnkernels applies hypernetworks."""
    return bool(getattr(shared.opts, ENABLED))


def home() -> Path:
    """The folder of training runs."""
    return Path(getattr(shared.opts, HOME) or Path(paths.data_path, "hnkernels"))


def python() -> str:
    """The interpreter that trains."""
    return getattr(shared.opts, PYTHON) or sys.executable


def hypernetworks() -> Path:
    """The web UI's folder of hypernetworks."""
    return Path(shared.cmd_opts.hypernetwork_dir)
