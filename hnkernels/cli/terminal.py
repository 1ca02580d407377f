"""What the command line prints on, and what it makes of texts that strangers wrote."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

console, errors = Console(), Console(stderr=True)

_LONGEST = 500  # characters of a value that is shown: tags of a data set may be megabytes


def printable(value: Any) -> str:
    """What a file says, as text that is neither markup nor control characters to a terminal, and not too long."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return escape(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")
