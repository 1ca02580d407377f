"""The tables that kohya's fine-tuning tools write: ``{"picture": {"caption": …, "tags": …}}``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hnkernels.training.data.text_files import parse_json, read_text

KOHYA_NAMES = ("metadata.json", "meta_cap.json", "meta_lat.json")  # in the order in which they are made


def kohya_entries(path: Path) -> dict[str, Any] | None:
    """Picture → caption, with the tags after it; ``None`` if the file is something else that has the same name.

    A picture may be named without its suffix.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        table = parse_json(read_text(path))
    except ValueError:
        return None
    if not isinstance(table, dict) or not table or not all(isinstance(entry, dict) for entry in table.values()):
        return None
    if not any("caption" in entry or "tags" in entry for entry in table.values()):
        return None
    return {name: _caption(entry.get("caption"), entry.get("tags")) for name, entry in table.items()}


def _caption(caption: Any, tags: Any) -> Any:
    """Both as one text; what is not text is left to the reader of tables to refuse."""
    if isinstance(caption, str) and isinstance(tags, str):
        return ", ".join(filter(None, (caption, tags)))
    return tags if caption is None else caption
