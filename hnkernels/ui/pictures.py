"""Single pictures as elements of a page, with words for those who do not see them."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image


def element(picture: Image.Image | None, words: str) -> str:
    """An ``<img>`` that holds its pixels itself; nothing for no picture.

    Args:
        picture: the picture.
        words: what it shows.
    """
    if picture is None:
        return ""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="picture" src="data:image/png;base64,{data}" alt="{escape(words, quote=True)}">'
