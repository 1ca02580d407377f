"""The app: its pages, under one bar."""

from __future__ import annotations

import gradio as gr

from hnkernels.home.folder import Home
from hnkernels.ui.pages import kernels, library, train, try_out, watch

TITLE = "hnkernels"


def build(home: Home) -> gr.Blocks:
    """All pages of a home; each is an address of its own, so that Back and bookmarks work."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as app:
        gr.Navbar(main_page_name="Train")
        train.build(home)
    for name, path, page in (
        ("Watch", "/watch", watch),
        ("Library", "/library", library),
        ("Try", "/try", try_out),
        ("Kernels", "/kernels", kernels),
    ):
        with app.route(name, path):
            page.build(home)
    return app
