"""Masks: where in a picture the training loss counts, and how much."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps
from PIL.Image import Resampling

from hnkernels.errors import InputError
from hnkernels.training.data.buckets import Size
from hnkernels.training.data.pictures import Source, eight_bits, opened, picture_size

_ASPECT_TOLERANCE = 0.01


def read_mask(source: Source, size: int | Size, mask: Source | None = None) -> np.ndarray:
    """Weights in [0, 1] as [height, width] (fp32) over what ``read_picture`` makes of a picture, 1 where it counts.

    Args:
        source: the picture. Without ``mask`` its alpha channel is the mask, which is 1 all over where it has none.
        size: width and height in pixels, or the side of a square.
        mask: a picture whose white counts and whose black does not. It is scaled to the size of the picture first.

    Raises:
        ValueError: one of the two cannot be read, or they do not have the same aspect ratio; the message names it.
    """
    if mask is None:
        with opened(source) as image:
            grey = _alpha(ImageOps.exif_transpose(image))
    else:
        original = picture_size(source)
        check_aspect(source, original, mask, picture_size(mask), "mask")
        with opened(mask, "mask") as image:
            grey = _grey(ImageOps.exif_transpose(image)).resize(original, Resampling.BILINEAR)
    width, height = (size, size) if isinstance(size, int) else size
    fitted = ImageOps.fit(grey, (width, height), Resampling.BILINEAR)  # Lanczos rings at the edges of a mask
    return np.asarray(fitted, dtype=np.float32) / 255


def check_aspect(source: Source, size: Size, other: Source, other_size: Size, what: str) -> None:
    """Raises ``ValueError`` if another picture, a mask say, does not lie over a picture once both have one size."""
    across, along = other_size[0] * size[1], other_size[1] * size[0]
    if abs(across - along) > _ASPECT_TOLERANCE * along:
        raise InputError(
            f"the {what} {other} has {other_size[0]} x {other_size[1]} pixels and its picture {source} has "
            f"{size[0]} x {size[1]}; give it the aspect ratio of the picture"
        )


def has_alpha(source: Source) -> bool:
    """Whether a picture has an alpha channel, or a colour that is transparent; of a file the header is read alone.

    Raises:
        ValueError: it cannot be opened; the message names it.
    """
    with opened(source) as image:
        return _has_alpha(image)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa") or ("transparency" in image.info and image.mode[0] not in "IF")


def _alpha(image: Image.Image) -> Image.Image:
    """The alpha channel; white where there is none."""
    if not _has_alpha(image):
        return Image.new("L", image.size, 255)
    return image.convert("RGBA").getchannel("A")


def _grey(image: Image.Image) -> Image.Image:
    """The image as 8-bit grey.

    Raises:
        ValueError: it is transparent in places, of which it is not clear whether they count.
    """
    if np.asarray(_alpha(image)).min() < 255:
        raise InputError("it is transparent in places; a mask is white where the loss counts and black elsewhere")
    return eight_bits(image).convert("L")
