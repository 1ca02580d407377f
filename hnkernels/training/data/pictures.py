"""Picture files as a person sees them: 8-bit RGB, upright, on white."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps
from PIL.Image import Resampling
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from hnkernels.errors import InputError
from hnkernels.training.data.buckets import Size
from hnkernels.training.data.shard_member import ShardMember

_END_OF_PNG = 2**17  # bytes; twice what EXIF may have in a JPEG
_LARGE = 16 * 10**6  # pixels, from which on a file must hold something of them
_PIXELS_PER_BYTE = 1000  # at most, in large files; photographs have up to 100, scanned pages up to 600

Source = str | PathLike[str] | ShardMember | Image.Image  # a file, a part of one, or an image that lies in memory

PICTURE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".tif", ".tiff", ".bmp", ".dib"),
    *(".tga", ".jp2", ".ppm", ".pgm", ".pbm"),
)


@dataclass(frozen=True)
class Picture:
    """A picture as it is trained on.

    Attributes:
        image: RGB of the size that was asked for.
        original_size: width and height of the file's picture in pixels, upright.
        crop: left and top edge of ``image`` in that picture once it is scaled, in whole pixels of ``image``.
    """

    image: Image.Image
    original_size: Size
    crop: tuple[int, int]


def read_picture(source: Source, size: int | Size) -> Picture:
    """The picture as RGB of a size: upright, centre crop, Lanczos resize, transparency on white.

    Of an animation the first frame, of a document the first page. Values of 16 bits, integers and floating-point
    values are scaled to 8 bits; an embedded colour profile is applied.

    Args:
        source: a file or an image of PIL.
        size: width and height in pixels, or the side of a square.

    Raises:
        ValueError: the picture cannot be read, for whatever reason; the message names it.
    """
    width, height = (size, size) if isinstance(size, int) else size
    with opened(source) as image:
        profile = image.info.get("icc_profile")
        image = ImageOps.exif_transpose(image)
        scale = max(width / image.width, height / image.height)
        crop = round((image.width * scale - width) / 2), round((image.height * scale - height) / 2)
        fitted = ImageOps.fit(eight_bits(image), (width, height), Resampling.LANCZOS)
        return Picture(_in_srgb(fitted, profile).convert("RGB"), image.size, crop)


def picture_size(source: Source) -> Size:
    """Width and height in pixels as ``read_picture`` sees them, upright; of a file the header is read alone.

    Raises:
        ValueError: this is not a picture that can be opened; the message names it.
    """
    with opened(source) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # of which some versions of Pillow turn the size and others do not
            width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
        turned = _orientation(image) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


def _orientation(image: Image.Image) -> int:
    """The orientation that EXIF or XMP says, found without decoding the picture where that is possible."""
    exif = image.getexif
    if isinstance(image, PngImageFile) and "exif" not in image.info and not _says_more_after_its_pixels(image):
        exif = partial(Image.Image.getexif, image)  # PngImageFile's decodes the picture to see what comes after it
    return exif().get(ExifTags.Base.Orientation, 1)


def _says_more_after_its_pixels(image: PngImageFile) -> bool:
    """Whether metadata may lie after a PNG's pixels, where exiftool puts it."""
    if image.fp is None:  # decoded already
        return False
    at = image.fp.tell()
    image.fp.seek(max(0, image.fp.seek(0, io.SEEK_END) - _END_OF_PNG))
    end = image.fp.read()
    image.fp.seek(at)
    return any(chunk in end for chunk in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"))


def _check_claim(image: Image.Image, source: str | PathLike[str] | ShardMember) -> None:
    """Raises ``ValueError`` if a file claims so many pixels that it cannot hold a picture of them.

    To decode it would take seconds and gigabytes, whatever few bytes there are.
    """
    pixels, held = (
        image.width * image.height,
        source.size if isinstance(source, ShardMember) else os.stat(source).st_size,
    )
    if pixels > max(_LARGE, held * _PIXELS_PER_BYTE):
        raise InputError(
            f"it claims to have {image.width} x {image.height} pixels, and the file has {held} bytes alone"
        )


@contextmanager
def opened(source: Source, what: str = "image") -> Iterator[Image.Image]:
    """PIL's image of a picture; whatever goes wrong in the body is an error that names the picture.

    Args:
        source: a file or an image of PIL.
        what: what the error calls it.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            # Between 89 and 179 million pixels PIL warns, above it raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(source, Image.Image):
                yield source
            else:
                with Image.open(source.open() if isinstance(source, ShardMember) else source) as image:
                    _check_claim(image, source)
                    yield image
    except Image.DecompressionBombError as error:
        raise InputError(f"the {what} {source} is too large: {error}; scale it down") from error
    except Exception as error:  # PIL's plugins raise nearly everything: OSError, SyntaxError, struct.error, MemoryError
        remedy = "remove it, or save it again as 8-bit RGB PNG"
        raise InputError(f"cannot read the {what} {source}: {error or type(error).__name__}; {remedy}") from error


def eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits per channel, without palette or transparency."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_scaled(np.asarray(image), image.mode))
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _scaled(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of PIL's modes ``I;16``, ``I`` (32-bit integers) and ``F`` (floating point) as 8 bits.

    Raises:
        ValueError: it is not clear which values are black and white.
    """
    low, high = values.min(), values.max()
    whole = low >= 0 and bool((values == values.round()).all())
    if mode == "F" and low >= 0 and high <= 1:
        white = 1
    elif whole and mode != "F" and (mode != "I" or 255 < high <= 65535):
        white = 65535
    elif whole and high <= 255:
        white = 255
    else:
        raise InputError(f"its values reach from {low} to {high}, and which of them are black and white is not known")
    return (values * (255 / white)).round().astype(np.uint8)


def _in_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """The image with its colour profile applied, if that is one for its mode."""
    if not profile:
        return image
    try:
        srgb = ImageCms.createProfile("sRGB")
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, own, srgb, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, TypeError):  # of another mode, or broken: viewers pass over it too
        return image
