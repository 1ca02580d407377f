"""Names of files and folders that somebody typed, or a browser sent."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from hnkernels.errors import InputError
from hnkernels.wording import shown

_LONGEST = 100  # bytes: suffixes and marks of time are appended, and a file system takes 255
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # devices on Windows
_FORBIDDEN = '/\\:*?"<>|'


def check_name(name: object) -> str:
    """A name that is one part of a path on every system, and nothing else.

    Raises:
        ValueError: it is empty, hidden, too long, or has characters in it that paths have a meaning for.
    """
    accepted = f"a name is 1 to {_LONGEST} bytes long, does not begin with a dot and has none of {_FORBIDDEN}"
    if not isinstance(name, str) or not name.strip(" .") or name != name.strip():
        raise InputError(f"{shown(name)} is not a name: {accepted}")
    strange = any(c in _FORBIDDEN or unicodedata.category(c) in ("Cc", "Cs", "Cf", "Zl", "Zp") for c in name)
    too_long = len(name.encode("utf-8", "replace")) > _LONGEST
    if strange or too_long or name.startswith(".") or name.endswith(".") or _RESERVED.fullmatch(name):
        raise InputError(f"{shown(name)} is not a name: {accepted}")
    return name


def child(folder: Path, name: object) -> Path:
    """The path of ``name`` in ``folder``, wherever links lead: never a path outside.

    Raises:
        ValueError: ``name`` is not a name, or is a link that leaves the folder.
    """
    path = folder / check_name(name)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path} is a link out of {folder}, which is not followed; put the file itself there")
    return path


def free_name(folder: Path, name: str) -> str:
    """``name``, or with the first number after it that makes it new in ``folder``: ``name-2``."""
    stem, dot, suffix = name.rpartition(".") if "." in name else (name, "", "")
    number = 1
    while (folder / name).exists() or (folder / name).is_symlink():
        number += 1
        name = f"{stem}-{number}{dot}{suffix}"
    return name
