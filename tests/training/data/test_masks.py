"""Masks over pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from hnkernels.training import Example
from hnkernels.training.data.masks import read_mask


def half(mode="L", size=(16, 16)):
    """White on the left, black on the right."""
    image = Image.new("L", size)
    image.paste(255, (0, 0, size[0] // 2, size[1]))
    return image.convert(mode)


LEFT = np.repeat([[1.0, 0.0]], 8, axis=1).repeat(16, axis=0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_the_alpha_channel_is_the_mask(mode):
    image = Image.new("RGB", (16, 16), "red").convert("RGBA")
    image.putalpha(half())
    if mode == "PA":
        image = Image.merge("PA", (Image.new("P", (16, 16)), half()))
    assert np.array_equal(read_mask(image.convert(mode), 16), LEFT)


def test_a_colour_that_stands_for_transparency_does_not_count(tmp_path):
    half("P").save(tmp_path / "a.png", transparency=half("P").getpixel((15, 0)))
    assert np.array_equal(read_mask(tmp_path / "a.png", 16), LEFT)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "1", "I;16", "F"])
def test_a_picture_without_alpha_counts_all_over(mode):
    assert (read_mask(Image.new(mode, (8, 4)), (6, 4)) == np.ones((4, 6))).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "RGBA"])
def test_a_mask_of_its_own_is_white_where_the_picture_counts(tmp_path, mode):
    half(mode).save(tmp_path / "mask.png")
    weights = Example(Image.new("RGB", (16, 16)), "", mask=tmp_path / "mask.png").weights(16)
    assert torch.equal(weights, torch.from_numpy(LEFT)[None].float())
    assert weights.dtype == torch.float32


def test_grey_counts_in_part(tmp_path):
    Image.new("L", (4, 4), 51).save(tmp_path / "m.png")
    assert np.allclose(read_mask(Image.new("RGB", (4, 4)), 4, tmp_path / "m.png"), 0.2)


@pytest.mark.parametrize("scale", [1, 2, 0.5])
@pytest.mark.parametrize("size", [(24, 16), (16, 16), (8, 24)])
def test_a_mask_is_scaled_and_cropped_like_its_picture(tmp_path, size, scale):
    image = half("RGB", (48, 32))
    half("L", (int(48 * scale), int(32 * scale))).save(tmp_path / "m.png")
    example = Example(image, "", mask=tmp_path / "m.png")
    seen, weights = (example.pixels(size).mean(0) + 1) / 2, example.weights(size)[0]
    assert weights.shape == (size[1], size[0])
    assert torch.equal(weights > 0.5, seen > 0.5)


def test_the_mask_of_a_turned_picture_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (16, 8))
    image.putalpha(half("L", (16, 8)))
    image.save(tmp_path / "a.png", exif=exif)
    weights = read_mask(tmp_path / "a.png", (8, 16))
    assert (weights[:8] == 1).all()
    assert (weights[8:] == 0).all()


@pytest.mark.parametrize(("size", "fits"), [((100, 50), True), ((101, 50), True), ((202, 100), True),
                                            ((102, 50), False), ((50, 100), False), ((50, 50), False)])  # fmt: skip
def test_a_mask_has_the_aspect_ratio_of_its_picture(tmp_path, size, fits):
    Image.new("L", size).save(tmp_path / "m.png")
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    if fits:
        assert read_mask(tmp_path / "a.png", (8, 4), tmp_path / "m.png").shape == (4, 8)
    else:
        with pytest.raises(ValueError, match=rf"mask .*m\.png has {size[0]} x {size[1]} .*a\.png has 200 x 100; give"):
            read_mask(tmp_path / "a.png", (8, 4), tmp_path / "m.png")


def test_a_mask_that_is_transparent_in_places_is_refused(tmp_path):
    image = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    image.save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"cannot read the mask .*m\.png: it is transparent in places; a mask is"):
        read_mask(Image.new("RGB", (4, 4)), 4, tmp_path / "m.png")


@pytest.mark.parametrize("broken", ["a.png", "m.png"])
def test_a_file_that_is_not_a_picture_is_named(tmp_path, broken):
    for name in ("a.png", "m.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    (tmp_path / broken).write_text("no picture")
    with pytest.raises(ValueError, match=rf"cannot read the \w+ .*{broken}"):
        Example(tmp_path / "a.png", "", mask=tmp_path / "m.png").weights(4)
