"""All networks of a home: those of its own, and those that its runs have finished."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hnkernels.checkpoint.files import EXTENSIONS
from hnkernels.errors import InputError
from hnkernels.home.folder import Home
from hnkernels.home.library.entry import BESIDE, NETWORKS, NOTES, Entry, joined
from hnkernels.home.library.facts import Facts, read_facts
from hnkernels.home.library.memory import Memory
from hnkernels.home.library.notes import read_notes
from hnkernels.home.names import check_name, child
from hnkernels.home.recycling import Bin

SUFFIXES = (*EXTENSIONS, *BESIDE)
"""What the files of a network end in."""

_START = "start.safetensors"
"""What a run began with; no network that it has finished."""


class Library:
    """The networks of a home.

    Args:
        home: the folder. It may be gone: then there are none.
    """

    def __init__(self, home: Home):
        self.home = home
        self.bin = Bin(home.bin, home.path)
        self._memory = Memory(home.path / ".library.json", home.path)
        self._lock = threading.Lock()
        self._claimed: set[Path] = set()

    def all(self) -> list[Entry]:
        """All networks by name, files that cannot be read included; a file is read again only when it has changed."""
        with self._lock:
            seen: set[Path] = set()
            entries = self._entries(self.home.networks, NETWORKS, seen)
            for run in _folders(self.home.runs):
                entries += self._entries(run, f"runs/{run.name}", seen)
            self._memory.keep(seen)
        return sorted(entries, key=lambda entry: (entry.name.casefold(), entry.key))

    def entry(self, key: object) -> Entry:
        """The network of a key.

        Raises:
            ValueError: there is none.
        """
        for entry in self.all():
            if entry.key == key:
                return entry
        name = key.rpartition("/")[2] if isinstance(key, str) else key
        raise InputError(f"there is no network {name!r} any more; choose another")

    @contextmanager
    def claiming(
        self, folder: Path, name: str, suffixes: tuple[str, ...] = SUFFIXES, *, numbered: bool = False
    ) -> Iterator[Path]:
        """While the body runs, no other thread takes this name in this folder.

        Args:
            folder: a part of the home.
            name: what somebody typed.
            suffixes: what the files of that name end in; none of them may be there.
            numbered: put a number after a name that is taken, ``name-2``, instead of refusing it.

        Yields:
            The path of the name, without a suffix.

        Raises:
            ValueError: it is not a name, or is taken.
        """
        if isinstance(name, str) and name.lower().endswith(EXTENSIONS):
            raise InputError(f"{name} is a name with an extension; leave {Path(name).suffix} out")
        with self._lock:
            number, free = 1, name
            while taken := self._taken(targets := [child(folder, check_name(free) + suffix) for suffix in suffixes]):
                if not numbered:
                    raise InputError(f"there is a {taken} in {folder.name} already; give another name")
                number += 1
                free = f"{name}-{number}"
            self._claimed |= set(targets)
        try:
            yield folder / free
        finally:
            with self._lock:
                self._claimed -= set(targets)

    def _taken(self, targets: list[Path]) -> str:
        """The name of the first target that is there, or claimed; empty if none is."""
        there = (target for target in targets if os.path.lexists(target) or target in self._claimed)
        return next((target.name for target in there), "")

    def _entries(self, folder: Path, where: str, seen: set[Path]) -> list[Entry]:
        files = _files(folder)
        stems: dict[str, list[str]] = {}
        for name in sorted(files, key=lambda name: (Path(name).suffix.lower() == EXTENSIONS[0], name)):
            if Path(name).suffix.lower() in EXTENSIONS and not (where != NETWORKS and name == _START):
                stems.setdefault(Path(name).stem, []).append(name)
        entries = []
        for stem, names in stems.items():
            found = []
            for name in names:
                facts = self._facts(folder / name, files[name], seen)
                if facts is not None:
                    found.append((folder / name, facts))
            if not found:
                continue
            found.sort(key=lambda one: bool(one[1].problem))
            beside = [name for suffix in BESIDE if where == NETWORKS and (name := f"{stem}{suffix}") in files]
            notes = f"{stem}{NOTES}"
            stats = [files[name] for name in (*names, *beside)]
            entries.append(
                Entry(
                    key=f"{where}/{stem}",
                    name=stem,
                    files=tuple(path for path, _ in found),
                    beside=tuple(folder / name for name in beside),
                    facts=joined(found),
                    notes=self._notes(folder / notes, files[notes], seen) if notes in beside else "",
                    size=sum(stat.st_size for stat in stats),
                    modified=max(stat.st_mtime for stat in stats),
                )
            )
        return entries

    def _facts(self, path: Path, stat: os.stat_result, seen: set[Path]) -> Facts | None:
        """What is in a file; ``None`` if it is gone."""
        if path.is_symlink():
            return Facts(problem=f"{path.name} is a link, which is not followed; put the file itself there")
        seen.add(path)
        try:
            return self._memory.recall(path, stat.st_size, stat.st_mtime_ns, read_facts)
        except FileNotFoundError:
            return None
        except OSError as error:
            return Facts(problem=f"{path.name} cannot be read: {error.strerror or error}; check disk and permissions")

    def _notes(self, path: Path, stat: os.stat_result, seen: set[Path]) -> str:
        if path.is_symlink():
            return ""
        seen.add(path)
        return self._memory.recall(path, stat.st_size, stat.st_mtime_ns, read_notes)


def _files(folder: Path) -> dict[str, os.stat_result]:
    """The visible files in a folder; none if it is gone. Of a link it is the link that is looked at."""
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and (entry.is_file() or entry.is_symlink()):
                    found[entry.name] = entry.stat(follow_symlinks=False)
    except OSError:
        return {}
    return found


def _folders(folder: Path) -> list[Path]:
    """The visible folders in a folder, without links out of it; none if it is gone."""
    root = Path(os.path.realpath(folder))
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    return [folder / name for name in names if Path(os.path.realpath(folder / name)).is_relative_to(root)]
