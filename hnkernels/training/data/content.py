"""The content of pictures as a hash: equal for equal pictures, wherever they lie."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from hnkernels.errors import InputError
from hnkernels.training.data.pictures import Source
from hnkernels.training.data.shard_member import ShardMember


class Stamp(NamedTuple):
    """What tells whether a file has changed without reading it.

    Attributes:
        name: absolute path, with the place in it for a part of a shard.
        length: of the file in bytes.
        mtime_ns: when it was last written.
    """

    name: bytes
    length: int
    mtime_ns: int


def stamp_of(source: Source) -> Stamp | None:
    """The stamp of a picture's file; ``None`` for an image in memory.

    Raises:
        ValueError: there is no such file; the message names it.
    """
    if isinstance(source, Image.Image):
        return None
    path, part = (source.shard, f"\0{source.offset}") if isinstance(source, ShardMember) else (source, "")
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the image {source}: {error}; remove it from the data") from error
    return Stamp(os.fsencode(os.path.abspath(path)) + part.encode(), status.st_size, status.st_mtime_ns)


def hash_of(source: Source) -> str:
    """SHA-256 of a picture's file, or of an image in memory with all that decides how it is seen.

    Raises:
        ValueError: the file cannot be read; the message names it.
    """
    digest = hashlib.sha256()
    if isinstance(source, Image.Image):
        image = source.convert("RGBA") if source.mode in ("P", "PA") or "transparency" in source.info else source
        orientation = source.getexif().get(ExifTags.Base.Orientation, 1)
        digest.update(repr((image.mode, image.size, orientation, source.info.get("icc_profile"))).encode())
        digest.update(np.asarray(image).tobytes())
        return digest.hexdigest()
    try:
        with source.open() if isinstance(source, ShardMember) else Path(source).open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"cannot read the image {source}: {error}; remove it from the data") from error
    return digest.hexdigest()
