"""What has been read of files, so that none is read twice while it stays as it is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hnkernels
from hnkernels.checkpoint.atomic import replacing
from hnkernels.checkpoint.errors import Fault
from hnkernels.home.library.entry import NOTES
from hnkernels.home.library.facts import Facts

_LARGEST = 2**28  # bytes of a file that is read


class Memory:
    """Facts and notes by path, size and time of change, kept in a file for the next start.

    The file is a convenience: one that is missing, damaged, of another version or not writable costs time, no more.

    Args:
        path: of the file.
        root: the folder that paths in it are relative to.
    """

    def __init__(self, path: Path, root: Path):
        self._path = path
        self._root = root
        self._known: dict[str, tuple[int, int, Facts | str]] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            self._load()

    def recall(self, path: Path, size: int, changed: int, read: Callable[[Path], Any]) -> Any:
        """What ``read`` gave for the file, or gives now.

        Args:
            path: below the root.
            size: in bytes.
            changed: in nanoseconds since 1970.
            read: takes the path; gives facts or a text. What it raises is not remembered.
        """
        key = path.relative_to(self._root).as_posix()
        known = self._known.get(key)
        if known is None or known[:2] != (size, changed):
            known = self._known[key] = (size, changed, read(path))
            self._changed = True
        return known[2]

    def keep(self, seen: set[Path]) -> None:
        """Forgets all files but those seen, and writes down what is new."""
        keys = {path.relative_to(self._root).as_posix() for path in seen}
        if gone := self._known.keys() - keys:
            self._known = {key: known for key, known in self._known.items() if key not in gone}
            self._changed = True
        if self._changed:
            self._changed = False
            with contextlib.suppress(OSError, Fault):
                self._save()

    def _load(self) -> None:
        if self._path.is_symlink() or self._path.stat().st_size > _LARGEST:
            return
        content = json.loads(self._path.read_bytes())
        if content["version"] != hnkernels.__version__:
            return
        for key, (size, changed, value) in content["files"].items():
            found = value if isinstance(value, str) else Facts.from_json(value)
            if found is not None and isinstance(found, str) == key.endswith(NOTES):
                self._known[key] = (int(size), int(changed), found)

    def _save(self) -> None:
        files = {
            key: (size, changed, found.to_json() if isinstance(found, Facts) else found)
            for key, (size, changed, found) in self._known.items()
        }
        if self._path.is_symlink():
            return
        with replacing(self._path) as file:
            file.write(json.dumps({"version": hnkernels.__version__, "files": files}).encode())
