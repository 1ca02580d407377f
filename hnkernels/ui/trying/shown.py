"""Pictures as components show them."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

LEAST = 256
"""Pixels that the longer side of a shown picture has about, at least."""


def gallery(pictures: list[Image.Image]) -> Any:
    """An update of a gallery, which is hidden until it has a picture: Gradio gives an empty one a wrong role."""
    return gr.Gallery([large(picture) for picture in pictures], selected_index=0, visible=True)


def single(pictures: list[Image.Image]) -> Any:
    """An update of a component for one picture, which is hidden until there is one."""
    return gr.Image(pictures[0], visible=True)


def large(picture: Image.Image) -> Image.Image:
    """A picture that is not blurred when a browser enlarges it, with its texts."""
    zoom = max(1, LEAST // max(picture.size))
    if zoom == 1:
        return picture
    larger = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    larger.info = dict(picture.info)
    return larger
