"""Shards of pictures and captions."""

import gzip
import io
import json
import os
import tarfile

import pytest
from PIL import Image

from hnkernels.training import read_image_folder
from hnkernels.training.data.pictures import picture_size
from hnkernels.training.data.shards import read_shard


def picture(color="red", suffix="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(buffer, suffix)
    return buffer.getvalue()


def shard(path, files, entries=()):
    """A shard with these files (name → content) and other entries, of which each is a ``TarInfo``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for entry in entries:
            tar.addfile(entry)
    return path


def entry(name, kind, target=""):
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def read(folder):
    return [(e.image.name, e.caption) for e in read_image_folder(folder)]


def test_pictures_and_captions_of_one_name_belong_together(tmp_path, recwarn):
    files = {
        "0.png": picture(), "0.txt": b" a cat\n", "0.json": b"{}",
        "below/1.jpg": picture(suffix="JPEG"), "below/1.json": json.dumps({"width": 6, "caption": "a dog"}).encode(),
        "./2.JPG": picture(suffix="JPEG"), "./2.caption": b"a \xc3\xa9",
    }  # fmt: skip
    shard(tmp_path / "x" / "0.tar", {name: data for name, data in files.items() if name != "0.json"})
    assert read(tmp_path) == [("0.png", "a cat"), ("below/1.jpg", "a dog"), ("./2.JPG", "a é")]
    assert not recwarn.list


def test_a_picture_in_a_shard_is_read_without_unpacking(tmp_path):
    shard(tmp_path / "0.tar", {f"{c}.png": picture(c) for c in ("red", "blue")} | {"red.txt": b"r", "blue.txt": b"b"})
    before = os.listdir(tmp_path)
    red, blue = read_image_folder(tmp_path)
    assert red.pixels(2)[:, 0, 0].tolist() == [1, -1, -1]
    assert blue.pixels(2)[:, 0, 0].tolist() == [-1, -1, 1]
    assert picture_size(blue.image) == (6, 4)
    assert os.listdir(tmp_path) == before


def test_shards_lie_among_pictures_and_in_numbered_folders(tmp_path, capsys):
    shard(tmp_path / "5_cat" / "0.tar", {"0.png": picture()})
    (tmp_path / "a dog.png").write_bytes(picture())
    with pytest.warns(UserWarning, match=r"pictures in \. \(1\), 5_cat/0\.tar \(1, each 5 times per epoch\)"):
        found = read_image_folder(tmp_path)
    assert [(e.caption, e.repeats) for e in found] == [("a dog", 1), ("cat", 5)]


def test_what_may_lead_outside_is_left_out_and_named(tmp_path):
    outside = {"/etc/a.png": picture(), "../b.png": picture(), "x/../../c.png": picture()}
    links = [entry("d.png", tarfile.SYMTYPE, "/etc/passwd"), entry("e.png", tarfile.LNKTYPE, "0.png"),
             entry("f.png", tarfile.CHRTYPE), entry("g.png", tarfile.FIFOTYPE)]  # fmt: skip
    shard(tmp_path / "0.tar", {"0.png": picture(), "0.txt": b"x"} | outside, links)
    with pytest.warns(UserWarning, match=r"names that lead out of shards \(7: 0\.tar//etc/a\.png, 0\.tar/\.\./b\.png"):
        assert read(tmp_path) == [("0.png", "x")]


def test_other_members_are_named(tmp_path):
    files = {"0.png": picture(), "0.txt": b"x", "0.depth.png": picture(), "0.cls": b"1", "9.txt": b"y", "0.json": b"{}"}
    shard(tmp_path / "0.tar", files)
    with pytest.warns(UserWarning, match=r"files of other types \(4: 0\.tar/0\.depth\.png, 0\.tar/0\.cls, "):
        assert read(tmp_path) == [("0.png", "x")]


def test_folders_and_what_systems_leave_are_not_data(tmp_path, recwarn):
    files = {"0.png": picture(), "0.txt": b"x", "._0.png": b"", ".DS_Store": b"", "__MACOSX/0.png": b""}
    shard(tmp_path / "0.tar", files, [entry("folder", tarfile.DIRTYPE), entry(".", tarfile.DIRTYPE)])
    assert read(tmp_path) == [("0.png", "x")]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("0.txt", b"\xff", r"0\.txt in .*0\.tar is not UTF-8 text"),
        ("0.json", b"{", r"0\.json in .*0\.tar is not JSON"),
        ("0.json", b"[]", "must be an object with a text under text, caption, prompt"),
        ("0.json", b'{"caption": 5}', "must be an object with a text under"),
    ],
)
def test_a_caption_that_cannot_be_used_is_named(tmp_path, name, content, said):
    shard(tmp_path / "0.tar", {"0.png": picture(), name: content})
    with pytest.raises(ValueError, match=said):
        read(tmp_path)


def test_a_broken_picture_in_a_shard_is_named(tmp_path):
    shard(tmp_path / "0.tar", {"0.png": picture()[:30], "0.txt": b"x"})
    (example,) = read_image_folder(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read the image 0\.png in .*0\.tar: "):
        example.pixels(4)


def test_a_shard_that_has_become_shorter_is_named(tmp_path):
    path = shard(tmp_path / "0.tar", {"0.png": picture(), "0.txt": b"x"})
    (example,) = read_image_folder(tmp_path)
    path.write_bytes(path.read_bytes()[:540])
    with pytest.raises(ValueError, match=r"0\.png in .*0\.tar: the shard has changed"):
        example.pixels(4)


def cut(data):
    return data[:700]


def backwards(data):
    """The size of the first file is negative, so that the next entry is the same again."""
    head = bytearray(data[:512])
    head[124:136] = (-1024).to_bytes(12, "big", signed=True)
    head[148:156] = b"        "
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data[512:]


@pytest.mark.parametrize("spoil", [cut, backwards, gzip.compress, lambda data: b"no shard", lambda data: b""])
def test_a_file_that_is_not_a_whole_shard_is_named(tmp_path, spoil):
    path = shard(tmp_path / "0.tar", {"0.png": picture(), "0.txt": b"x"})
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=r"cannot read the shard .*0\.tar: .*; it must be a whole tar file"):
        read_shard(path)


def test_an_empty_shard_holds_nothing(tmp_path):
    assert not read_shard(shard(tmp_path / "0.tar", {})).pictures
    with pytest.raises(ValueError, match="holds no images"):
        read_image_folder(tmp_path)
