"""Page."""

from __future__ import annotations

import gradio as gr

from hnkernels.home.folder import Home


def build(home: Home) -> None:
    """The page."""
    gr.Markdown("# library")
