"""The content of pictures as a hash."""

import hashlib
import io
import tarfile

import pytest
from PIL import Image

from hnkernels.training.data.content import hash_of, stamp_of
from hnkernels.training.data.shards import read_shard


@pytest.fixture
def path(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_the_hash_of_a_file_is_that_of_its_bytes(path):
    assert hash_of(path) == hash_of(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_picture_in_a_shard_has_the_hash_of_the_file(path, tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(path, "a.png")
        tar.add(path, "b.png")
    members = [picture for picture, _ in read_shard(tmp_path / "0.tar").pictures]
    assert [hash_of(member) for member in members] == [hash_of(path)] * 2
    assert len({stamp_of(member) for member in members}) == 2


def test_images_in_memory_are_equal_where_they_are_seen_alike():
    image = Image.new("RGB", (4, 6), "red")
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    profiled = image.copy()
    profiled.info["icc_profile"] = b"x"
    palette = Image.new("P", (4, 6), 0)
    other = palette.copy()
    palette.putpalette([255, 0, 0])
    other.putpalette([0, 0, 255])
    blue = Image.new("RGB", (4, 6), "blue")
    seen = [image, turned, profiled, palette, other, blue, Image.new("RGB", (6, 4), "red"), Image.new("L", (4, 6))]
    assert len({hash_of(one) for one in seen}) == len(seen)
    assert hash_of(image.copy()) == hash_of(image)
    assert stamp_of(image) is None


def test_the_stamp_changes_with_the_file(path, tmp_path):
    before = stamp_of(path)
    assert stamp_of(str(path)) == before
    path.write_bytes(path.read_bytes() + b"x")
    assert stamp_of(path) != before


@pytest.mark.parametrize("function", [hash_of, stamp_of])
@pytest.mark.parametrize("name", ["none.png", "x/none.png"])
def test_a_file_that_is_not_there_is_named(tmp_path, function, name):
    with pytest.raises(ValueError, match=rf"cannot read the image .*{name}: .*; remove it from the data"):
        function(tmp_path / name)


def test_an_image_opened_lazily_has_the_hash_of_its_pixels(path):
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert hash_of(image) == hash_of(Image.new("RGB", (4, 4), "red"))
