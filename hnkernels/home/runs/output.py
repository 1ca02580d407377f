"""What the process of a run writes for people to read."""

from __future__ import annotations

import os
import re
from pathlib import Path

OUTPUT = "output.log"
"""The file, in the folder of the run."""

_TAIL = 8192  # bytes
_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # of colours


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a file that are not empty, without colours and without what a progress bar wrote over."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = [_CODES.sub("", line).rpartition("\r")[2].rstrip() for line in text.splitlines()]
    return [line for line in lines if line][-count:]
