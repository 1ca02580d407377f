"""Text files as editors on every system save them."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from hnkernels.errors import InputError

_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The file's text: UTF-8, or what its byte order mark says, which is not part of the text.

    Raises:
        ValueError: the file cannot be read, or is in another encoding; the message names it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return decoded(data, path)


def decoded(data: bytes, name: str | Path) -> str:
    """The text of a file of this name; see ``read_text``."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text: {error}; save it as UTF-8") from error
    if "\0" in text:  # UTF-16 without its mark, or no text at all
        raise InputError(f"{name} is not UTF-8 text: it holds zero bytes; save it as UTF-8")
    return text


def parse_json(text: str) -> Any:
    """What the JSON says.

    Raises:
        ValueError: it is not JSON, or an object has a key twice, of which one would be lost.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise InputError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) < len(pairs):
        twice = next(key for key in known if sum(key == other for other, _ in pairs) > 1)
        raise InputError(f"{twice!r} is given twice")
    return known
