"""What all handlers of events share: they are the page's own, and a fault is a sentence on the page."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

from hnkernels.checkpoint import CheckpointError

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
"""Arguments of an event that no program but the page's own is told of."""


def sentence(message: object) -> str:
    """A message as text of a page: never markup, whatever names of files are in it."""
    text = html.escape(str(message)).strip()
    for mark in "\\`*_[]#|":
        text = text.replace(mark, f"&#{ord(mark)};")
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def said(handler: Callable[..., str]) -> Callable[..., str]:
    """A handler whose faults are shown where its sentence would be."""

    @functools.wraps(handler)
    def shown(*args: Any) -> str:
        try:
            return sentence(handler(*args))
        except (ValueError, OSError, CheckpointError) as error:
            return f"<span class='fault'>{sentence(error)}</span>"

    return shown
