"""Shards as webdataset has them: tar files in which a picture and its caption have one name but for the suffix."""

from __future__ import annotations

import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from hnkernels.errors import InputError
from hnkernels.training.data.pictures import PICTURE_SUFFIXES
from hnkernels.training.data.shard_member import ShardMember
from hnkernels.training.data.text_files import decoded, parse_json
from hnkernels.training.data.walk import is_the_systems
from hnkernels.wording import shown

_CAPTION_SUFFIXES = (".txt", ".caption", ".json")  # the first of them that is there counts
_CAPTION_KEYS = ("text", "caption", "prompt")


@dataclass
class Shard:
    """What a shard holds.

    Attributes:
        pictures: the pictures with their captions, ``None`` where there is none, in their order.
        unsafe: links, devices, sparse files, and names that lead outside: absolute, or through ``..``.
        others: what nothing reads.
        hidden: what a system has left there.
    """

    pictures: list[tuple[ShardMember, str | None]] = field(default_factory=list)
    unsafe: list[ShardMember] = field(default_factory=list)
    others: list[ShardMember] = field(default_factory=list)
    hidden: list[ShardMember] = field(default_factory=list)


def read_shard(path: Path) -> Shard:
    """Looks a shard through; nothing is unpacked, and of its pictures only the places are noted.

    Raises:
        ValueError: it is not an uncompressed tar file, is cut off, or a caption in it cannot be used.
    """
    shard = Shard()
    pictures: dict[str, list[ShardMember]] = defaultdict(list)
    captions: dict[str, dict[str, ShardMember]] = defaultdict(dict)
    try:
        for entry in _entries(path):
            member, name = ShardMember(path, entry.name, entry.offset_data, entry.size), PurePosixPath(entry.name)
            suffix = name.suffix.lower()
            if not entry.isreg() or entry.issparse() or name.is_absolute() or ".." in name.parts:
                shard.unsafe.append(member)
            elif not name.name or any(part.startswith(".") or is_the_systems(part) for part in name.parts):
                shard.hidden.append(member)
            elif name.name.count(".") != 1:  # without a type, or of another modality, as x.depth.png
                shard.others.append(member)
            elif suffix in PICTURE_SUFFIXES:
                pictures[name.with_suffix("").as_posix()].append(member)
            elif suffix in _CAPTION_SUFFIXES:
                captions[name.with_suffix("").as_posix()].setdefault(suffix, member)
            else:
                shard.others.append(member)
    except (tarfile.TarError, OSError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(
            f"cannot read the shard {path}: {error}; it must be a whole tar file, without compression"
        ) from error
    for key, found in pictures.items():
        texts = captions.pop(key, {})
        suffix = next((suffix for suffix in _CAPTION_SUFFIXES if suffix in texts), "")
        caption = _caption(texts.pop(suffix)) if suffix else None
        shard.pictures += [(picture, caption) for picture in found]
        shard.others += texts.values()
    for texts in captions.values():
        shard.others += texts.values()
    return shard


def _entries(path: Path) -> Iterator[tarfile.TarInfo]:
    """All entries but folders; each is forgotten when the next comes, for a shard may hold a great many."""
    end = 0
    with tarfile.open(path, "r:") as tar:
        if tar.firstmember is None:  # type: ignore[attr-defined]
            return  # asked for the next one, Python 3.10 would look for it before the file's beginning
        while (entry := tar.next()) is not None:
            if entry.size < 0 or entry.offset_data <= end:  # a crafted size would lead back, again and again
                raise tarfile.ReadError(f"{shown(entry.name)} has a negative size")
            end = entry.offset_data
            tar.members.clear()  # type: ignore[attr-defined]
            if not entry.isdir():
                yield entry


def _caption(member: ShardMember) -> str:
    """What a caption file says.

    Raises:
        ValueError: it is not text, or JSON without a caption; the message names it.
    """
    try:
        text = decoded(member.open().read(), str(member))
    except OSError as error:
        raise InputError(f"cannot read {member}: {error}") from error
    if not member.name.lower().endswith(".json"):
        return text.strip()
    try:
        found: Any = parse_json(text)
    except ValueError as error:
        raise InputError(f"{member} is not JSON: {error}") from None
    key = next((key for key in _CAPTION_KEYS if isinstance(found, dict) and isinstance(found.get(key), str)), None)
    if key is None:
        raise InputError(f"{member} must be an object with a text under {', '.join(_CAPTION_KEYS)}, not {shown(found)}")
    return found[key].strip()
