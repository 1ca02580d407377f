"""What a folder of training data holds: which pictures are used, with which captions, and what is left out and why."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hnkernels.training.data.pictures import PICTURE_SUFFIXES
from hnkernels.training.data.tables import TABLE_NAMES, read_table
from hnkernels.training.data.text_files import read_text

CAPTION_SUFFIXES = (".txt", ".caption")  # the first of them that is there counts
_FILE_NAMES = "file names"
_MAY_HOLD_CAPTIONS = {
    *(".json", ".jsonl", ".csv", ".tsv", ".parquet", ".xlsx", ".xml", ".yaml", ".yml"),
    *(".captions", ".cap", ".tag", ".tags", ".text"),
}
_SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"}
_ABOUT_THE_FOLDER = {"readme", "license", "licence"}

_SYSTEM = "hidden files and the system's"
_RUN = "what a training run wrote"
_HIDDEN = "hidden pictures"
_NOT_FILES = "links to nothing, or not files"
_AGAIN = "links to folders that are read anyway"
_NOT_LISTED = "pictures that the table of their folder does not name"
_SPARE = "captions of pictures that are left out or have another caption"
_ORPHANS = "captions without a picture"
_OTHERS = "files of other types"
_REPEATED = "lines of tables that repeat another"
_COLUMNS = "unknown columns of tables"
_EXPECTED = (_SYSTEM, _RUN)  # nobody needs to be warned of these


@dataclass
class FolderContents:
    """What a folder of training data holds.

    Attributes:
        folder: the folder.
        rows: picture, caption and condition.
        captions: where captions come from → the pictures that have theirs from there.
        left_out: reason → names of what is not used.
        remarks: what else a user should know.
    """

    folder: Path
    rows: list[tuple[Path, str, Any]] = field(default_factory=list)
    captions: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    remarks: list[str] = field(default_factory=list)

    @property
    def surprising(self) -> bool:
        """Whether something is left out, or to be known, that a user may not expect."""
        return bool(self.remarks or self.left_out.keys() - set(_EXPECTED))

    def summary(self) -> str:
        """How many pictures, captions from where, what is left out and why."""
        places = defaultdict(list)
        for image, _, _ in self.rows:
            places[self.name(image.parent)].append(self.name(image))
        captions = ", ".join(f"{source} ({len(images)})" for source, images in self.captions.items())
        pictures = "1 picture" if len(self.rows) == 1 else f"{len(self.rows)} pictures"
        parts = [f"{self.folder}: {pictures}, captions from {captions}"]
        if len(places) > 1 or "." not in places:
            parts.append("pictures in " + _some([f"{place} ({len(images)})" for place, images in places.items()], 8))
        if self.left_out:
            parts.append("left out: " + self.omissions())
        return "; ".join(parts + self.remarks)

    def omissions(self) -> str:
        """What is left out and why."""
        return ", ".join(f"{reason} ({len(names)}: {_some(names)})" for reason, names in self.left_out.items())

    def name(self, path: str | Path) -> str:
        """The path as seen from the folder."""
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def leave_out(self, reason: str, paths: Iterable[str | Path]) -> None:
        """Counts and names what is not used."""
        if names := [self.name(path) for path in paths]:
            self.left_out[reason] += names


def read_folder(folder: Path) -> FolderContents:
    """Reads a folder of pictures and captions with all folders below it; see ``read_image_folder``.

    Raises:
        ValueError: there is no such folder, no picture in it, a caption or a table cannot be used, or pictures would be
            called by their file names while captions lie there unread.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a folder with images and captions")
    contents = FolderContents(folder)
    files = sorted(_walk(contents), key=lambda path: path.parts)
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    tables = [path for path in files if path.name.lower() in TABLE_NAMES]
    texts = [p for p in files if p.suffix.lower() in CAPTION_SUFFIXES and p.stem.lower() not in _ABOUT_THE_FOLDER]
    listed = _read_tables(contents, tables)
    below = {path.parent for path in tables}
    unlisted = {path for path in pictures if path not in listed and not below.isdisjoint(path.parents)}
    used = _read_captions(contents, [path for path in pictures if path not in listed and path not in unlisted], texts)

    known = {*pictures, *tables, *texts, *listed}
    others = [path for path in files if path not in known]
    owners = {_key(path) for path in pictures} | {_key(path.with_suffix("")) for path in [*pictures, *others]}
    spare = [path for path in texts if path not in used and _key(path.with_suffix("")) in owners]
    orphans = [path for path in texts if path not in used and _key(path.with_suffix("")) not in owners]
    contents.leave_out(_NOT_LISTED, sorted(unlisted))
    contents.leave_out(_SPARE, spare)
    contents.leave_out(_ORPHANS, orphans)
    contents.leave_out(_OTHERS, others)
    if not contents.rows:
        found = f"; left out: {contents.omissions()}" if contents.left_out else ""
        raise ValueError(f"{folder} holds no images; accepted are {', '.join(PICTURE_SUFFIXES)}{found}")
    _check_file_names(contents, [*orphans, *(p for p in others if p.suffix.lower() in _MAY_HOLD_CAPTIONS)])
    _remark(contents)
    return contents


def _walk(contents: FolderContents) -> list[Path]:
    """All files below the folder that may be data; each folder once, whatever links to it."""
    root = Path(os.path.realpath(contents.folder))
    files: list[Path] = []
    starts, seen = [contents.folder], set[str]()
    for start in starts:  # grows: linked folders come after those that lie here
        for place, folders, names in os.walk(start, onerror=_refuse):
            real = os.path.realpath(place)
            if real in seen or root.parent.is_relative_to(real):
                contents.leave_out(_AGAIN, [place])
                folders.clear()
                continue
            seen.add(real)
            paths = _visible(contents, place, folders, names)
            files += [path for path in paths if path.is_file()]
            contents.leave_out(_NOT_FILES, [path for path in paths if not path.is_file() and not path.is_dir()])
            starts += [path for path in paths if path.is_dir() and path.is_symlink()]
            folders[:] = [path.name for path in paths if path.is_dir() and not path.is_symlink()]
    return files


def _visible(contents: FolderContents, place: str, folders: list[str], names: list[str]) -> list[Path]:
    """What lies in a folder but for hidden files, the system's, and those of a training run that wrote there."""
    run = {"log.csv", "checkpoints", "previews"} if "log.csv" in names and "checkpoints" in folders else set()
    visible = []
    for path in [Path(place, name) for name in sorted([*folders, *names])]:
        if path.name in run:
            contents.leave_out(_RUN, [path])
        elif path.name.startswith("._") or path.name.lower() in _SYSTEM_NAMES:
            contents.leave_out(_SYSTEM, [path])
        elif path.name.startswith("."):
            picture = path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
            contents.leave_out(_HIDDEN if picture else _SYSTEM, [path])
        else:
            visible.append(path)
    return visible


def _refuse(error: OSError) -> None:
    raise ValueError(f"cannot read the folder {error.filename}: {error}") from error


def _read_tables(contents: FolderContents, tables: list[Path]) -> set[Path]:
    """Takes over what the tables say; returns the pictures that they name."""
    known = set()
    listed: dict[Path, None] = {}
    for path in tables:
        if [other.parent for other in tables].count(path.parent) > 1:
            raise ValueError(f"{path.parent} holds both {' and '.join(TABLE_NAMES)}; remove one of them")
        for number, image, caption, condition, unknown in read_table(path, contents.folder):
            row = (image, caption, repr(condition))
            if row in known:
                contents.left_out[_REPEATED].append(f"{contents.name(path)}, line {number}")
                continue
            known.add(row)
            listed[image] = None
            contents.rows.append((image, caption, condition))
            contents.captions[contents.name(path)].append(contents.name(image))
            for column in sorted(unknown - set(contents.left_out.get(_COLUMNS, ()))):
                contents.left_out[_COLUMNS].append(column)
    if more := len(contents.rows) - len(listed):
        contents.remarks.append(f"tables name pictures again with other captions, all of which are used ({more})")
    return set(listed)


def _read_captions(contents: FolderContents, pictures: list[Path], texts: list[Path]) -> set[Path]:
    """Gives each picture the caption beside it, or its file name; returns the caption files that are used."""
    exact, alike = set(texts), {_key(path): path for path in reversed(texts)}
    used = set()
    for image in pictures:
        wanted = [image.with_name(stem + suffix) for stem in (image.stem, image.name) for suffix in CAPTION_SUFFIXES]
        found = next((path for path in wanted if path in exact), None)
        found = found or next((alike[_key(path)] for path in wanted if _key(path) in alike), None)
        if found is None:
            # As A1111 does: without a leading number.
            source, caption = _FILE_NAMES, re.sub(r"^[-\d]+\s*", "", image.stem)
        else:
            used.add(found)
            source, caption = found.suffix.lower(), read_text(found).strip()
        contents.rows.append((image, caption, None))
        contents.captions[source].append(contents.name(image))
    return used


def _check_file_names(contents: FolderContents, unread: list[Path]) -> None:
    if (called := contents.captions.get(_FILE_NAMES)) and unread:
        raise ValueError(
            f"{contents.folder}: there is no caption beside {_some(called)} ({len(called)} in all), while captions may "
            f"lie in {_some([contents.name(path) for path in unread])}; name a caption file like its picture (a.png, "
            f"a.txt), list pictures and captions in {' or '.join(TABLE_NAMES)}, or move other files elsewhere"
        )


def _remark(contents: FolderContents) -> None:
    if len(contents.captions) > 1 and (called := contents.captions.get(_FILE_NAMES)):
        contents.remarks.append(f"no caption beside {_some(called)}: the file name is the caption")
    if empty := [contents.name(image) for image, caption, _ in contents.rows if not caption.strip()]:
        contents.remarks.append(f"empty captions ({len(empty)}: {_some(empty)})")
    folders = {part for image, _, _ in contents.rows for part in Path(contents.name(image.parent)).parts}
    if numbered := sorted(name for name in folders if re.match(r"\d+_", name)):
        contents.remarks.append(
            f"the number of {_some(numbered)} is not a repeat count here, nor the name a caption: every picture is "
            "used once per epoch"
        )


def _key(path: Path) -> tuple[Path, str]:
    """Equal for names that differ in case or in how accents are composed."""
    return path.parent, unicodedata.normalize("NFC", path.name).casefold()


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
