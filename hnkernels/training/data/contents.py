"""What a folder of training data holds, and how that is said."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hnkernels.training.data.example import Example
from hnkernels.training.data.pictures import Source
from hnkernels.training.data.shard_member import ShardMember

FILE_NAMES = "file names"
FOLDER_NAMES = "names of folders"

SYSTEM = "hidden files and the system's"
RUN = "what a training run wrote"
HIDDEN = "hidden pictures"
NOT_FILES = "links to nothing, or not files"
AGAIN = "links to folders that are read anyway"
NOT_LISTED = "pictures that the table of their folder does not name"
NEVER = "pictures in folders whose number is 0"
SPARE = "captions of pictures that are left out or have another caption"
SPARE_TABLES = "tables that a later one of the same trainer replaces"
SPARE_MASKS = "masks without a picture"
ORPHANS = "captions without a picture"
OTHERS = "files of other types"
UNSAFE = "links, devices and names that lead out of shards"
REPEATED = "lines of tables that repeat another"
COLUMNS = "unknown columns of tables"
_EXPECTED = (SYSTEM, RUN)  # nobody needs to be warned of these


@dataclass
class FolderContents:
    """What a folder of training data holds.

    Attributes:
        folder: the folder.
        rows: the examples.
        captions: where captions come from → the pictures that have theirs from there.
        left_out: reason → names of what is not used.
        remarks: what else a user should know.
    """

    folder: Path
    rows: list[Example] = field(default_factory=list)
    captions: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    remarks: list[str] = field(default_factory=list)

    @property
    def surprising(self) -> bool:
        """Whether something is left out, or to be known, that a user may not expect."""
        return bool(self.remarks or self.left_out.keys() - set(_EXPECTED))

    def summary(self) -> str:
        """How many pictures, captions from where, what is left out and why."""
        places: dict[str, list[Example]] = defaultdict(list)
        for example in self.rows:
            file = file_of(example.image)
            places[self.name(file if isinstance(example.image, ShardMember) else file.parent)].append(example)
        captions = ", ".join(f"{source} ({len(images)})" for source, images in self.captions.items())
        pictures = "1 picture" if len(self.rows) == 1 else f"{len(self.rows)} pictures"
        parts = [f"{self.folder}: {pictures}, captions from {captions}"]
        if len(places) > 1 or "." not in places:
            parts.append("pictures in " + some([_counted(place, found) for place, found in places.items()], 8))
        if masked := sum(example.mask is not None for example in self.rows):
            parts.append(f"masks ({masked})")
        if edited := sum(example.source is not None for example in self.rows):
            parts.append(f"pictures to be edited ({edited})")
        if self.left_out:
            parts.append("left out: " + self.omissions())
        return "; ".join(parts + self.remarks)

    def omissions(self) -> str:
        """What is left out and why."""
        return ", ".join(f"{reason} ({len(names)}: {some(names)})" for reason, names in self.left_out.items())

    def name(self, path: Source) -> str:
        """The path as seen from the folder; a shard is like a folder."""
        if isinstance(path, ShardMember):
            return f"{self.name(path.shard)}/{path.name}"
        return Path(os.path.relpath(str(path), self.folder)).as_posix()

    def add(self, example: Example, caption_from: str) -> None:
        """Takes an example in; ``caption_from`` says where its caption comes from."""
        self.rows.append(example)
        self.captions[caption_from].append(self.name(example.image))

    def leave_out(self, reason: str, paths: Iterable[Source]) -> None:
        """Counts and names what is not used."""
        if names := [self.name(path) for path in paths]:
            self.left_out[reason] += names


def file_of(image: Source) -> Path:
    """The file that a folder's picture lies in: itself, or its shard."""
    return image.shard if isinstance(image, ShardMember) else Path(str(image))


def some(names: list[str], most: int = 3) -> str:
    """The first of these names, for a message."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _counted(place: str, examples: list[Example]) -> str:
    repeats = examples[0].repeats  # the same for a whole folder
    return f"{place} ({len(examples)}{f', each {repeats} times per epoch' if repeats > 1 else ''})"
