"""The bin: what is deleted is moved there, and comes back from there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hnkernels.checkpoint.atomic import replacing
from hnkernels.errors import InputError
from hnkernels.home.names import check_name, child, free_name

_RECORD = "deleted.json"


@dataclass(frozen=True)
class Deleted:
    """Something in the bin.

    Attributes:
        key: its name in the bin.
        name: what it was called.
        part: the part of the home that it is from: ``"runs"``, ``"networks"`` …
        time: when it was deleted, in seconds since 1970.
        files: names of its files or folders.
    """

    key: str
    name: str
    part: str
    time: float
    files: tuple[str, ...]


class Bin:
    """What was deleted, each thing with all its files in a folder of its own.

    Args:
        path: the bin.
        home: the folder that has the parts.
    """

    def __init__(self, path: Path, home: Path):
        self.path = path
        self.home = home

    def put(self, name: str, files: Iterable[Path]) -> Deleted:
        """Moves files or folders, all from one part of the home, into the bin.

        Args:
            name: what they are called together.
            files: at least one; those that do not exist are passed over.

        Raises:
            ValueError: they cannot be moved. Then those that were moved already are back.
        """
        there = [file for file in files if file.exists() or file.is_symlink()]
        if not there:
            raise InputError(f"{name} is not there any more; nothing was deleted")
        part = there[0].parent.name
        key = free_name(self.path, f"{check_name(name)}-{time.strftime('%Y%m%d-%H%M%S')}")
        folder = self.path / key
        deleted = Deleted(key, name, part, time.time(), tuple(file.name for file in there))
        try:
            folder.mkdir(parents=True)
            with replacing(folder / _RECORD) as record:
                record.write(json.dumps({"name": name, "part": part, "time": deleted.time}).encode())
            _move_all([(file, folder / file.name) for file in there])
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(f"{name} cannot be deleted: {error.strerror or error}; it is where it was") from error
        return deleted

    def all(self) -> list[Deleted]:
        """What is in the bin, the latest first; folders that were not put there by ``put`` are passed over."""
        found = []
        for folder in self.path.iterdir() if self.path.is_dir() else ():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads((folder / _RECORD).read_bytes())
                files = tuple(sorted(path.name for path in folder.iterdir() if path.name != _RECORD))
                found.append(
                    Deleted(folder.name, str(record["name"]), str(record["part"]), float(record["time"]), files)
                )
        return sorted(found, key=lambda deleted: -deleted.time)

    def restore(self, key: str) -> list[Path]:
        """Moves something back to where it was.

        Returns:
            Where its files are now.

        Raises:
            ValueError: it is not in the bin, or something else has its name now.
        """
        deleted = next((deleted for deleted in self.all() if deleted.key == key), None)
        if deleted is None:
            raise InputError(f"{key!r} is not in the bin; look there again")
        folder, part = child(self.path, key), child(self.home, deleted.part)
        targets = [child(part, file) for file in deleted.files]
        if taken := [target.name for target in targets if target.exists()]:
            raise InputError(f"{part} has another {' and '.join(taken)} now; rename that one first")
        try:
            part.mkdir(parents=True, exist_ok=True)
            _move_all([(folder / target.name, target) for target in targets])
        except OSError as error:
            raise InputError(f"{deleted.name} cannot be restored: {error.strerror or error}") from error
        shutil.rmtree(folder)
        return targets

    def empty(self, part: str) -> list[Deleted]:
        """Removes what was deleted from a part of the home for good.

        Returns:
            What is gone.

        Raises:
            ValueError: something cannot be removed; it can be tried again.
        """
        removed = [deleted for deleted in self.all() if deleted.part == part]
        for deleted in removed:
            try:
                shutil.rmtree(child(self.path, deleted.key))
            except OSError as error:
                raise InputError(f"{deleted.name} cannot be removed: {error.strerror or error}") from error
        return removed


def _move_all(moves: list[tuple[Path, Path]]) -> None:
    """Renames all files, or none."""
    done = []
    try:
        for source, target in moves:
            os.rename(source, target)
            done.append((source, target))
    except OSError:
        for source, target in reversed(done):
            os.rename(target, source)
        raise
