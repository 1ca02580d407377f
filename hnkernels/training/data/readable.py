"""Which pictures can be opened, found out before anything is encoded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from hnkernels.errors import InputError
from hnkernels.training.data.buckets import Size
from hnkernels.training.data.cache import Cache, MemoryCache
from hnkernels.training.data.contents import some
from hnkernels.training.data.example import Example
from hnkernels.training.data.masks import check_aspect
from hnkernels.training.data.pictures import Source


def readable(examples: Sequence[Example], skip_broken: bool = False, cache: Cache | None = None) -> list[Example]:
    """The examples with their ``size``, once the headers of all their pictures are found to be readable.

    A mask, and a picture that is edited, is opened too, and must have the aspect ratio of its example's image. Pixels
    are not decoded: a file that is cut off after its header is found when it is encoded.

    Args:
        examples: any examples.
        skip_broken: leaves out, under one warning that names them, those that cannot be used.
        cache: knows the sizes of files that have been opened before, and learns the others.

    Raises:
        ValueError: pictures cannot be used (without ``skip_broken``), or none can; the message names the first and says
            what is wrong with it.
    """
    cache = MemoryCache() if cache is None else cache
    sound, broken, reasons = [], list[str](), list[ValueError]()
    for example in examples:
        try:
            sound.append(replace(example, size=_checked_size(example, cache)))
        except ValueError as error:
            broken.append(str(example.image))
            reasons.append(error)
    if not broken:
        return sound
    if not sound:
        raise InputError(f"no picture can be used ({len(broken)} given): {reasons[0]}") from reasons[0]
    if not skip_broken:
        others = f"; {len(broken) - 1} more cannot be used: {some(broken[1:])}" if broken[1:] else ""
        raise InputError(f"{reasons[0]}{others}; skip_broken leaves out what cannot be used") from reasons[0]
    warnings.warn(
        f"{len(broken)} of {len(examples)} pictures cannot be used and are left out: {', '.join(broken)}; the first: "
        f"{reasons[0]}",
        stacklevel=2,
    )
    return sound


def _checked_size(example: Example, cache: Cache) -> Size:
    size = example.size or cache.picture_size(example.image)
    others: list[tuple[str, Source | None]] = [("mask", example.mask), ("picture to be edited", example.source)]
    for what, other in others:
        if other is not None:
            check_aspect(example.image, size, other, cache.picture_size(other), what)
    return size
