"""What the command line prints on, and what it makes of texts that strangers wrote."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Names of files and what is in them are shown as they are: ":x:" is not a picture, "[b]" is not bold.
console, _errors = (Console(stderr=stderr, markup=False, emoji=False, highlight=False) for stderr in (False, True))
if not console.is_terminal:
    console.width = 10_000  # columns: nothing is cut or folded in a file

_LONGEST = 500  # characters of a value that is shown: tags of a data set may be megabytes


def printable(value: Any) -> str:
    """What a file says, as text without control characters, and not too long."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def say(*parts: str | tuple[str, str]) -> None:
    """A line, never broken: a path can be copied whole. Parts are texts, or texts with a style."""
    console.print(Text.assemble(*parts), soft_wrap=True)


def show(table: Table) -> None:
    """A table of which no word is cut: folded in a terminal, as wide as it needs to be elsewhere."""
    for column in table.columns:
        column.overflow = "fold"
    console.print(table)


def warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning of Python's, as a line on stderr; in the place of ``warnings.showwarning``."""
    _errors.print(Text.assemble(("warning:", "yellow"), " ", printable(message)), soft_wrap=True)


def complain(error: object) -> None:
    """What went wrong, as a line on stderr."""
    _errors.print(Text.assemble(("error:", "red"), " ", str(error)), soft_wrap=True)
