"""What all handlers of events share: they are the page's own, and a fault is a sentence on the page."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable
from typing import Any

from hnkernels.adapter import AdapterError
from hnkernels.checkpoint import CheckpointError

FAULTS = (ValueError, OSError, CheckpointError, AdapterError)
"""What is said on the page when it is raised."""

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
"""Arguments of an event that no program but the page's own is told of."""

_WORD = re.compile(r"[a-z']+[?!,:]?(?: |$)")  # and not a name with a hyphen, a dot or an underscore


def sentence(message: object) -> str:
    """A message as an element of a page, which screen readers say: never markup, whatever names of files are in it."""
    return f'<p role="status">{_text(message)}</p>'


def refused(error: object) -> str:
    """What is wrong, as an element of a page."""
    return f'<p role="alert" class="fault">{_text(error)}</p>'


def said(handler: Callable[..., str]) -> Callable[..., str]:
    """A handler whose faults are shown where its sentence would be."""

    @functools.wraps(handler)
    def shown(*args: Any) -> str:
        try:
            return sentence(handler(*args))
        except FAULTS as error:
            return refused(error)

    return shown


def _text(message: object) -> str:
    text = html.escape(str(message), quote=False).strip()
    if _WORD.match(text):
        text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
