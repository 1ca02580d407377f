"""Picture files as a person sees them: 8-bit RGB, upright, on white."""

from __future__ import annotations

import io
import warnings
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".tif", ".tiff", ".bmp", ".dib"),
    *(".tga", ".jp2", ".ppm", ".pgm", ".pbm"),
)


def read_picture(source: str | PathLike[str] | Image, resolution: int) -> Image:
    """The picture as RGB of [resolution, resolution]: upright, centre crop, Lanczos resize, transparency on white.

    Of an animation the first frame, of a document the first page. Values of 16 bits, whole numbers and floating-point
    values are scaled to 8 bits; an embedded colour profile is applied.

    Raises:
        ValueError: the picture cannot be read, for whatever reason; the message names it.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Between 89 and 179 million pixels PIL warns, above it raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(source, Image.Image):
                return _fitted(source, resolution)
            with Image.open(source) as opened:
                return _fitted(opened, resolution)
    except Image.DecompressionBombError as error:
        raise ValueError(f"the image {source} is too large: {error}; scale it down") from error
    except Exception as error:  # PIL's plugins raise nearly everything: OSError, SyntaxError, struct.error, MemoryError
        remedy = "remove it, or save it again as 8-bit RGB PNG"
        raise ValueError(f"cannot read the image {source}: {error or type(error).__name__}; {remedy}") from error


def _fitted(image: Image, resolution: int) -> Image:
    from PIL import Image, ImageOps

    profile = image.info.get("icc_profile")
    image = _flat(ImageOps.exif_transpose(image))
    image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
    return _in_srgb(image, profile).convert("RGB")


def _flat(image: Image) -> Image:
    """The image with 8 bits per channel, without palette or transparency."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
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
        raise ValueError(f"its values reach from {low} to {high}, and which of them are black and white is not known")
    return (values * (255 / white)).round().astype(np.uint8)


def _in_srgb(image: Image, profile: Any) -> Image:
    """The image with its colour profile applied, if that is one for its mode."""
    from PIL import ImageCms

    if not profile:
        return image
    try:
        srgb = ImageCms.createProfile("sRGB")
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, own, srgb, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, TypeError):  # of another mode, or broken: viewers pass over it too
        return image
