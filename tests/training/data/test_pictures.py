"""Picture files as a person sees them."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from hnkernels.training import Example
from hnkernels.training.data.pictures import picture_size, read_picture
from hnkernels.training.data.shard_member import ShardMember

RAMP = np.tile(np.linspace(0, 1, 16), (16, 1))
EIGHT_BITS = (RAMP * 255).round().astype("uint8")
GREY = Image.fromarray(EIGHT_BITS)
LOSS = 3  # of 255: what JPEG and conversions of colours round


def shown(source):
    """The picture's grey values, which are those of all three channels but for rounding."""
    image = np.asarray(read_picture(source, 16).image).astype(int)
    assert image.shape == (16, 16, 3)
    assert np.ptp(image, axis=-1).max() <= LOSS
    return image[..., 0]


def is_the_ramp(source):
    return abs(shown(source) - EIGHT_BITS).max() <= LOSS


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "a.jpeg", "a.jfif", "a.webp", "a.gif", "a.tif", "a.tiff", "a.bmp", "a.tga", "a.pgm"]
)
def test_files_of_many_types_are_read(tmp_path, name):
    options = {"quality": 100} if name.startswith("a.j") else {"lossless": True} if name == "a.webp" else {}
    GREY.save(tmp_path / name, **options)
    assert is_the_ramp(tmp_path / name)


def test_avif_is_read_where_pillow_does(tmp_path):
    if ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow reads no AVIF")
    GREY.save(tmp_path / "a.avif", quality=100)
    assert is_the_ramp(tmp_path / "a.avif")


@pytest.mark.parametrize("mode", ["L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_of_eight_bits_is_shown_alike(mode):
    start = GREY if mode in ("L", "P", "LA", "PA") else GREY.convert("RGB")
    assert is_the_ramp(start.convert("P").convert("PA") if mode == "PA" else start.convert(mode))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_a_grey_ramp_of_16_bits_stays_a_ramp(tmp_path, suffix):
    Image.fromarray((RAMP * 65535).astype("uint16")).save(tmp_path / f"a{suffix}")
    assert is_the_ramp(tmp_path / f"a{suffix}")


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path):
    Image.fromarray((RAMP * 200).astype("uint16")).save(tmp_path / "a.tif")
    assert shown(tmp_path / "a.tif").max() <= 1


@pytest.mark.parametrize(
    ("values", "dtype"),
    [(RAMP * 65535, "int32"), (EIGHT_BITS, "int32"), (RAMP, "float32"), (EIGHT_BITS, "float32")],
    ids=["32 bits up to 65535", "32 bits up to 255", "floats up to 1", "whole floats up to 255"],
)
def test_whole_numbers_and_floats_are_scaled(tmp_path, values, dtype):
    Image.fromarray(values.astype(dtype)).save(tmp_path / "a.tif")
    assert is_the_ramp(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "values",
    [RAMP * 1.5, RAMP * 200.5, RAMP - 0.5, np.where(RAMP > 0.5, np.nan, RAMP), (RAMP * 2**30).astype("int32")],
    ids=["above 1", "parts of 255", "negative", "NaN", "32 bits"],
)
def test_values_of_which_black_and_white_are_unknown_are_refused(tmp_path, values):
    Image.fromarray(values if values.dtype == "int32" else values.astype("float32")).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.tif: its values reach from .* 8-bit RGB PNG"):
        read_picture(tmp_path / "a.tif", 4)


@pytest.mark.parametrize(
    ("original", "size", "crop"),
    [
        ((8, 4), (4, 4), (2, 0)),
        ((4, 8), (4, 4), (0, 2)),
        ((8, 4), (8, 4), (0, 0)),
        ((30, 20), (24, 8), (0, 4)),
        ((4, 4), (8, 6), (0, 1)),
    ],
)
def test_a_picture_is_scaled_until_it_covers_its_size_and_cropped_around_its_centre(original, size, crop):
    picture = read_picture(Image.new("RGB", original), size)
    assert picture.image.size == size
    assert picture.original_size == original
    assert picture.crop == crop
    assert Example(Image.new("RGB", original), "").pixels(size).shape == (3, size[1], size[0])


def test_what_is_cropped_is_where_it_is_said_to_be():
    image = Image.new("L", (32, 16))
    image.paste(255, (12, 0, 16, 16))
    left = read_picture(image, 16).crop[0]
    assert np.flatnonzero(np.asarray(read_picture(image, 16).image)[8, :, 0] > 127).tolist() == [
        x - left for x in range(12, 16)
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_the_size_is_that_of_the_upright_picture(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (12, 7)).save(tmp_path / name, exif=exif)
    size = (7, 12) if orientation > 4 else (12, 7)
    assert picture_size(tmp_path / name) == read_picture(tmp_path / name, 4).original_size == size


def test_the_size_is_upright_where_exif_follows_the_pixels_of_a_png(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 7)).save(tmp_path / "a.png", exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    at = data.index(b"eXIf") - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    (tmp_path / "a.png").write_bytes(data.replace(chunk, b"").replace(b"\0\0\0\0IEND", chunk + b"\0\0\0\0IEND"))
    assert picture_size(tmp_path / "a.png") == read_picture(tmp_path / "a.png", 4).original_size == (7, 12)
    with Image.open(tmp_path / "a.png") as image:
        assert picture_size(image) == (7, 12)
        image.load()
        assert picture_size(image) == (7, 12)


def test_the_size_is_read_from_the_header_alone(tmp_path, monkeypatch):
    for name in ("a.png", "a.jpg", "a.webp", "a.tif", "a.gif", "a.bmp"):
        GREY.save(tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr("PIL.ImageFile.ImageFile.load", None)
            assert picture_size(tmp_path / name) == (16, 16)
    cut(tmp_path / "a.png")
    assert picture_size(tmp_path / "a.png") == (16, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path, orientation):
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what undoes an orientation, as numbers of PIL's Transpose
    turned = GREY if orientation == 1 else GREY.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / "a.png", exif=exif)
    assert is_the_ramp(tmp_path / "a.png")


def test_an_animation_shows_its_first_frame(tmp_path):
    GREY.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (16, 16), 99)])
    assert is_the_ramp(tmp_path / "a.gif")


def test_a_colour_that_stands_for_transparency_becomes_white(tmp_path):
    GREY.save(tmp_path / "a.png", transparency=0)
    assert shown(tmp_path / "a.png")[0, 0] == 255


def test_a_colour_profile_is_applied(tmp_path):
    lab = ImageCms.createProfile("LAB")
    picture = Image.new("RGB", (16, 16), (200, 80, 40))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The columns of red and green, exchanged in the profile, exchange them in the picture.
    profile = srgb.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")
    picture.save(tmp_path / "a.png", icc_profile=profile)
    pixel = read_picture(tmp_path / "a.png", 4).image.getpixel((0, 0))
    assert max(abs(a - b) for a, b in zip(pixel, (80, 200, 40), strict=True)) <= LOSS
    for other in (b"nonsense", ImageCms.ImageCmsProfile(lab).tobytes(), srgb):
        GREY.save(tmp_path / "b.png", icc_profile=other)
        assert is_the_ramp(tmp_path / "b.png")


def cut(path):
    GREY.save(path, compress_level=0)
    path.write_bytes(path.read_bytes()[:-80])


def text_bomb(path):
    GREY.save(path)
    head, tail = path.read_bytes()[:33], path.read_bytes()[33:]
    body = b"zTXt" + b"k\0\0" + zlib.compress(bytes(2**21))
    path.write_bytes(head + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + tail)


def claims(width, height):
    """A picture whose header says more than its data."""

    def write(path):
        GREY.save(path)
        body = b"IHDR" + struct.pack(">II", width, height) + path.read_bytes()[24:29]
        path.write_bytes(path.read_bytes()[:12] + body + struct.pack(">I", zlib.crc32(body)) + path.read_bytes()[33:])

    return write


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: path.write_bytes(b""), "cannot identify"),
        (lambda path: path.write_text("no picture"), "cannot identify"),
        (lambda path: path.mkdir(), "Is a directory|denied"),
        (lambda path: None, "No such file"),
        (cut, "truncated"),
        (text_bomb, "MAX_TEXT_CHUNK"),
        (claims(14000, 14000), "is too large: .*scale it down"),
        (claims(10000, 10000), r"claims to have 10000 x 10000 pixels, and the file has \d+ bytes alone; remove it"),
        (claims(0, 4), ""),
    ],
    ids=["empty", "text", "folder", "missing", "cut", "text bomb", "196 megapixels", "100 megapixels", "no width"],
)
def test_a_picture_that_cannot_be_read_is_named(tmp_path, write, said):
    write(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"the image .*a\.png.*({said})"):
        Example(tmp_path / "a.png", "").pixels(4)
    if write not in (cut, text_bomb):
        with pytest.raises(ValueError, match=rf"the image .*a\.png.*({said})"):
            Example(tmp_path / "a.png", "").picture_size()


@pytest.mark.parametrize("error", [MemoryError(), struct.error("short"), KeyError("x"), SyntaxError("broken")])
def test_whatever_pillow_raises_names_the_picture(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ValueError, match=rf"cannot read the image .*a\.png: .*({type(error).__name__}|{error})"):
        read_picture(tmp_path / "a.png", 4)


def test_a_part_of_a_shard_is_measured_by_itself(tmp_path):
    claims(10000, 10000)(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "0.tar").write_bytes(content + bytes(10**6))
    with pytest.raises(ValueError, match=rf"the file has {len(content)} bytes alone"):
        picture_size(ShardMember(tmp_path / "0.tar", "a.png", 0, len(content)))


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a_large_photograph_is_read_however_well_it_is_compressed(tmp_path, suffix):
    blurred = Image.effect_noise((60, 40), 60).resize((6000, 4000), Image.Resampling.BILINEAR).convert("RGB")
    blurred.save(tmp_path / f"a{suffix}", quality=5, method=0)
    assert read_picture(tmp_path / f"a{suffix}", 8).original_size == (6000, 4000)


def test_a_large_picture_is_used_without_a_word(tmp_path, monkeypatch):
    GREY.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # of the picture's 256; PIL raises from twice as many on
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_the_ramp(tmp_path / "a.png")
