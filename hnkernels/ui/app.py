"""The app: its pages, under one bar."""

from __future__ import annotations

import gradio as gr

from hnkernels.home.folder import Home
from hnkernels.ui.pages import kernels, library, train, try_out, watch

TITLE = "hnkernels"
_DAY = 86400  # seconds: how long a file that a browser sent or was sent is kept


def build(home: Home) -> gr.Blocks:
    """All pages of a home; each is an address of its own, so that Back and bookmarks work."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(_DAY, _DAY)) as app:
        _bar()
        train.build(home)
    for name, path, page in (
        ("Watch", "/watch", watch),
        ("Library", "/library", library),
        ("Try", "/try", try_out),
        ("Kernels", "/kernels", kernels),
    ):
        with app.route(name, path):
            _bar()
            page.build(home)
    return app


def _bar() -> None:
    """The bar of a page; Gradio would call the first one Home."""
    gr.Navbar(main_page_name="Train")
