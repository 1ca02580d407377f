"""What somebody wrote about a network: the entry ``notes`` of the JSON file beside it, where A1111 keeps its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hnkernels.checkpoint.atomic import replacing
from hnkernels.checkpoint.errors import naming
from hnkernels.errors import InputError

_KEY = "notes"
_LONGEST = 10_000  # characters
_LARGEST = 2**20  # bytes of a file that is read


def read_notes(path: Path) -> str:
    """The notes in a file; none if it has none, is no such file, or is gone."""
    try:
        text = _content(path).get(_KEY, "")
    except (ValueError, OSError):
        return ""
    return text[:_LONGEST] if isinstance(text, str) else ""


def write_notes(path: Path, text: str) -> None:
    """Puts notes into a file, whole or not at all; what else is in it stays.

    Raises:
        ValueError: the notes are too long, or the file holds something else.
        CheckpointError: it cannot be written.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise InputError(f"notes are at most {_LONGEST} characters long; shorten them")
    content: dict[str, Any] = {}
    with naming(path):
        if path.exists():
            content = _content(path)
        content[_KEY] = text.encode("utf-8", "replace").decode()
        with replacing(path) as file:
            file.write(json.dumps(content, indent=4, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def _content(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST:
        raise InputError(f"{path.name} is larger than notes are; move it elsewhere, or give the network another name")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path.name} holds no notes; move it elsewhere, or give the network another name")
    return content
