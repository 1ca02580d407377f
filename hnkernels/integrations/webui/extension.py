"""What the extension adds to the web UI, whenever that loads its scripts."""

from __future__ import annotations

from modules import script_callbacks  # the web UI's own

from hnkernels.integrations.webui import axes, settings
from hnkernels.integrations.webui.network import follow_setting, follow_step
from hnkernels.integrations.webui.tab import tab


def register() -> None:
    """Adds settings, tab, axes and what follows the sampling. The web UI forgets them when it reloads its scripts, and
    runs the script that calls this once more."""
    settings.add(follow_setting)
    script_callbacks.on_before_ui(_before_ui)
    script_callbacks.on_cfg_denoiser(follow_step)
    script_callbacks.on_ui_tabs(tab)


def _before_ui() -> None:
    """Now the web UI has registered its own extra networks, and loaded the script of grids."""
    follow_setting()
    if settings.enabled():
        axes.add()
