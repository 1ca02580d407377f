"""One network of a home: the files that belong together, and what is known about them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hnkernels.checkpoint.files import EXTENSIONS
from hnkernels.errors import InputError
from hnkernels.home.library.facts import Facts

NOTES = ".json"
"""What the file with notes ends in."""

BESIDE = (".pt.optim", NOTES, ".txt", ".preview.png", ".png")
"""What other files of a network end in: its optimizer's state, and what A1111 shows of it."""

NETWORKS = "networks"
"""The part of the home whose networks can be changed; the others belong to runs."""


@dataclass(frozen=True)
class Entry:
    """A network.

    Attributes:
        key: what it is asked for by: ``"networks/style"``, or ``"runs/first/style"``.
        name: of its files, without what they end in; A1111 lists it, and prompts call it, by this name.
        files: the files that hold it: safetensors before ``.pt``.
        beside: the other files that go with it.
        facts: what is in the first file that can be read.
        notes: what somebody wrote about it.
        size: of its files, in bytes.
        modified: when the latest of them was written, in seconds since 1970.
    """

    key: str
    name: str
    files: tuple[Path, ...]
    beside: tuple[Path, ...]
    facts: Facts
    notes: str
    size: int
    modified: float

    @property
    def own(self) -> bool:
        """Whether it lies among the networks; that of a run is only looked at and copied."""
        return self.key.startswith(f"{NETWORKS}/")

    @property
    def run(self) -> str:
        """Name of the run that it is of; empty for one among the networks."""
        return "" if self.own else self.key.split("/")[1]

    def file(self, extension: str = "") -> Path:
        """The file that holds it, or the one of an extension.

        Raises:
            ValueError: it cannot be read, or there is none.
        """
        if self.facts.problem:
            raise InputError(self.facts.problem)
        for path in self.files:
            if path.suffix.lower().startswith(extension):
                return path
        raise InputError(f"{self.name} has no {extension} file; convert it to {extension}")

    def to_json(self) -> dict[str, Any]:
        """The entry for programs: texts and numbers."""
        return {
            "key": self.key,
            "name": self.name,
            "run": self.run,
            "files": [str(path) for path in self.files],
            "size": self.size,
            "modified": self.modified,
            **asdict(self.facts),
            "notes": self.notes,
        }


def joined(files: list[tuple[Path, Facts]]) -> Facts:
    """What is known about a network of several files, of which the first that can be read counts.

    A1111 knows the ``.pt`` alone, so the hash and the word on A1111 are that one's. Files that differ, or that cannot
    be read beside one that can, are warned of.
    """
    readable = [(path, facts) for path, facts in files if not facts.problem]
    if not readable:
        return files[0][1]
    path, facts = readable[0]
    warnings = list(facts.warnings)
    for other, found in files:
        if found.problem:
            warnings.append(found.problem)
        elif _what(found) != _what(facts):
            warnings.append(f"{other.name} holds another network than {path.name}; give one of them another name")
    for other, found in readable:
        if other.suffix.lower() == EXTENSIONS[0]:
            facts = replace(facts, hash=found.hash, a1111=found.a1111)
            break
    return replace(facts, warnings=tuple(warnings))


def _what(facts: Facts) -> tuple[Any, ...]:
    return (facts.kind, facts.step, facts.widths, facts.structure, facts.activation, facts.layer_norm)
