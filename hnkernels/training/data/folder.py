"""A folder of training data: which pictures are used, with which captions, and what is left out and why."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from pathlib import Path, PurePath

from hnkernels.errors import InputError
from hnkernels.training.data.contents import (
    COLUMNS,
    FILE_NAMES,
    FOLDER_NAMES,
    NEVER,
    NOT_LISTED,
    ORPHANS,
    OTHERS,
    REPEATED,
    SPARE,
    SPARE_TABLES,
    SYSTEM,
    UNSAFE,
    FolderContents,
    file_of,
    some,
)
from hnkernels.training.data.example import Example
from hnkernels.training.data.mask_folder import check_mask_folder, give_masks
from hnkernels.training.data.numbered import numbered_folder
from hnkernels.training.data.pictures import PICTURE_SUFFIXES, Source
from hnkernels.training.data.shard_member import ShardMember
from hnkernels.training.data.shards import read_shard
from hnkernels.training.data.tables import TABLE_NAMES, find_tables, read_table
from hnkernels.training.data.text_files import read_text
from hnkernels.training.data.walk import walk

CAPTION_SUFFIXES = (".txt", ".caption")  # the first of them that is there counts
_MAY_HOLD_CAPTIONS = {
    *(".json", ".jsonl", ".csv", ".tsv", ".parquet", ".xlsx", ".xml", ".yaml", ".yml"),
    *(".captions", ".cap", ".tag", ".tags", ".text"),
}
_ABOUT_THE_FOLDER = {"readme", "license", "licence"}


def read_folder(
    folder: str | Path, masks: str | Path | None = None, without: str | Path | None = None
) -> FolderContents:
    """Reads a folder of pictures and captions with all folders below it; see ``read_image_folder``.

    Args:
        folder: the data.
        masks: a folder with a mask for every picture, if there is one. It may lie inside the other.
        without: a folder that may lie inside, too, and does not belong to the data.

    Raises:
        ValueError: there is no such folder, no picture in it, a caption or a table cannot be used, pictures would be
            called by their file or folder names while captions lie there unread, or a picture has no mask.
    """
    folder, masks = Path(folder), None if masks is None else Path(masks)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder with images and captions")
    if masks is not None:
        check_mask_folder(masks, folder)
    if without is not None and Path(without).resolve() == folder.resolve():
        raise InputError(f"{folder} is the folder of the pictures and regularization_data at once; give two folders")
    contents = FolderContents(folder)
    files = walk(contents, without=[Path(other) for other in (masks, without) if other is not None])
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    tables, replaced = find_tables(files)
    texts = [p for p in files if p.suffix.lower() in CAPTION_SUFFIXES and p.stem.lower() not in _ABOUT_THE_FOLDER]
    listed = _read_tables(contents, tables)
    below = {path.parent for path in tables}
    unlisted = {path for path in pictures if path not in listed and not below.isdisjoint(path.parents)}
    used = _read_captions(contents, [path for path in pictures if path not in listed and path not in unlisted], texts)

    shards = [path for path in files if path.suffix.lower() == ".tar"]
    _read_shards(contents, shards)

    known = {*pictures, *shards, *tables, *replaced, *texts, *listed}
    others = [path for path in files if path not in known]
    owners = {_key(path) for path in pictures} | {_key(path.with_suffix("")) for path in [*pictures, *others]}
    spare = [path for path in texts if path not in used and _key(path.with_suffix("")) in owners]
    orphans = [path for path in texts if path not in used and _key(path.with_suffix("")) not in owners]
    contents.leave_out(NOT_LISTED, sorted(unlisted))
    contents.leave_out(SPARE, spare)
    contents.leave_out(SPARE_TABLES, replaced)
    contents.leave_out(ORPHANS, orphans)
    contents.leave_out(OTHERS, others)
    if not contents.rows:
        found = f"; left out: {contents.omissions()}" if contents.left_out else ""
        raise InputError(f"{folder} holds no images; accepted are {', '.join(PICTURE_SUFFIXES)}{found}")
    _check_names(contents, [*orphans, *(p for p in others if p.suffix.lower() in _MAY_HOLD_CAPTIONS)])
    if masks is not None:
        give_masks(contents, masks)
    _remark(contents)
    return contents


def _read_tables(contents: FolderContents, tables: list[Path]) -> set[Source]:
    """Takes over what the tables say; returns the pictures that they name."""
    examples: dict[tuple, Example] = {}
    for path in tables:
        for row in read_table(path, contents.folder):
            example = row.example
            content = (example.image, example.caption, repr(example.condition), example.source)
            if content in examples:
                contents.left_out[REPEATED].append(f"{contents.name(path)}, {row.place}")
                continue
            examples[content] = example
            _take(contents, example, contents.name(path))
            for column in sorted(row.unknown - set(contents.left_out.get(COLUMNS, ()))):
                contents.left_out[COLUMNS].append(column)
    pictures: set[Source] = {example.image for example in examples.values()}
    if more := len(examples) - len(pictures):
        contents.remarks.append(f"tables name pictures again with other captions, all of which are used ({more})")
    return pictures | {example.source for example in examples.values() if example.source is not None}


def _read_captions(contents: FolderContents, pictures: list[Path], texts: list[Path]) -> set[Path]:
    """Gives each picture the caption beside it, or its folder's or file's name; returns the files that are used."""
    exact, alike = set(texts), {_key(path): path for path in reversed(texts)}
    used = set()
    for image in pictures:
        wanted = [image.with_name(stem + suffix) for stem in (image.stem, image.name) for suffix in CAPTION_SUFFIXES]
        found = next((path for path in wanted if path in exact), None)
        found = found or next((alike[_key(path)] for path in wanted if _key(path) in alike), None)
        if found is None:
            _take(contents, *_named(image, contents.folder))
        else:
            used.add(found)
            _take(contents, Example(image, read_text(found).strip()), found.suffix.lower())
    return used


def _read_shards(contents: FolderContents, shards: list[Path]) -> None:
    for path in shards:
        shard = read_shard(path)
        for image, caption in shard.pictures:
            if caption is None:
                _take(contents, *_named(image, contents.folder))
            else:
                _take(contents, Example(image, caption), "shards")
        for reason, members in ((UNSAFE, shard.unsafe), (OTHERS, shard.others), (SYSTEM, shard.hidden)):
            contents.leave_out(reason, members)


def _named(image: Path | ShardMember, root: Path) -> tuple[Example, str]:
    """A picture that is called by the name of its numbered folder, or by that of its file, and which of the two."""
    if folder := numbered_folder(file_of(image), root):
        return Example(image, folder.caption), FOLDER_NAMES
    # As A1111 does: without a leading number.
    return Example(image, re.sub(r"^[-\d]+\s*", "", PurePath(image.name).stem)), FILE_NAMES


def _take(contents: FolderContents, example: Example, caption_from: str) -> None:
    """Takes an example in with the repeats of its folder, or leaves it out if these are 0."""
    folder = numbered_folder(file_of(example.image), contents.folder)
    if folder is None:
        contents.add(example, caption_from)
    elif folder.repeats:
        contents.add(replace(example, repeats=folder.repeats), caption_from)
    else:
        contents.leave_out(NEVER, [example.image])


def _check_names(contents: FolderContents, unread: list[Path]) -> None:
    called = [*contents.captions.get(FILE_NAMES, ()), *contents.captions.get(FOLDER_NAMES, ())]
    if called and unread:
        raise InputError(
            f"{contents.folder}: there is no caption beside {some(called)} ({len(called)} in all), while captions may "
            f"lie in {some([contents.name(path) for path in unread])}; name a caption file like its picture (a.png, "
            f"a.txt), list pictures and captions in {' or '.join(TABLE_NAMES)}, or move other files elsewhere"
        )


def _remark(contents: FolderContents) -> None:
    if len(contents.captions) > 1 and (called := contents.captions.get(FILE_NAMES)):
        contents.remarks.append(f"no caption beside {some(called)}: the file name is the caption")
    if len(contents.captions) > 1 and (called := contents.captions.get(FOLDER_NAMES)):
        contents.remarks.append(f"no caption beside {some(called)}: the name of the folder is the caption")
    if empty := [contents.name(example.image) for example in contents.rows if not example.caption.strip()]:
        contents.remarks.append(f"empty captions ({len(empty)}: {some(empty)})")


def _key(path: Path) -> tuple[Path, str]:
    """Equal for names that differ in case or in how accents are composed."""
    return path.parent, unicodedata.normalize("NFC", path.name).casefold()
