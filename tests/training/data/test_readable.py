"""Pictures that can be opened, and those that cannot."""

import pytest
from PIL import Image

from hnkernels.training import Example
from hnkernels.training.data import cache as module
from hnkernels.training.data.cache import DiskCache
from hnkernels.training.data.readable import readable


def save(path, size=(6, 4)):
    Image.new("RGB", size).save(path)
    return path


@pytest.fixture
def examples(tmp_path):
    """Five pictures of which the second and the fourth are broken."""
    paths = [save(tmp_path / f"{i}.png") for i in range(5)]
    paths[1].write_text("no picture")
    paths[3].unlink()
    return [Example(path, "x") for path in paths]


def test_sizes_are_read_once_and_kept(tmp_path, monkeypatch, recwarn):
    path = save(tmp_path / "a.png")
    seen, read = [], module.picture_size
    monkeypatch.setattr(module, "picture_size", lambda source: (seen.append(source), read(source))[1])
    found = readable([Example(path, "x"), Example(path, "y"), Example(Image.new("RGB", (2, 3)), "z")])
    assert [(e.caption, e.size, e.picture_size()) for e in found] == [
        ("x", (6, 4), (6, 4)),
        ("y", (6, 4), (6, 4)),
        ("z", (2, 3), (2, 3)),
    ]
    readable(found)
    assert len(seen) == 2
    assert found[0] == Example(path, "x")  # what is known of a picture makes no other example
    assert not recwarn.list


def test_a_cache_knows_the_sizes_of_the_last_run(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png")
    with DiskCache(tmp_path / "cache") as cache:
        readable([Example(path, "x")], cache=cache)
    monkeypatch.setattr(module, "picture_size", None)
    with DiskCache(tmp_path / "cache") as cache:
        assert readable([Example(path, "x")], cache=cache)[0].size == (6, 4)


def test_the_first_picture_that_is_broken_is_named_and_how_many_more(examples):
    said = r"cannot read the image .*1\.png: .*; 1 more cannot be used: .*3\.png; skip_broken leaves out"
    with pytest.raises(ValueError, match=said):
        readable(examples)
    with pytest.raises(ValueError, match=r"1\.png: .*PNG; skip_broken leaves out what cannot be used"):
        readable(examples[:3])


def test_broken_pictures_are_left_out_under_one_warning(examples):
    with pytest.warns(
        UserWarning, match=r"2 of 5 pictures cannot .* left out: .*1\.png, .*3\.png; the first: "
    ) as seen:
        found = readable(examples, skip_broken=True)
    assert len(seen) == 1
    assert [e.image.stem for e in found] == ["0", "2", "4"]


@pytest.mark.parametrize("skip_broken", [False, True])
def test_where_all_are_broken_that_is_an_error(examples, skip_broken):
    with pytest.raises(ValueError, match=r"no picture can be used \(2 given\): cannot read the image .*1\.png"):
        readable([examples[1], examples[3]], skip_broken)


@pytest.mark.parametrize(("field", "said"), [("mask", "the mask"), ("source", "the picture to be edited")])
def test_what_belongs_to_a_picture_is_opened_too(tmp_path, field, said):
    image, other = save(tmp_path / "a.png"), save(tmp_path / "b.png", (12, 8))
    assert readable([Example(image, "x", **{field: other})])[0].size == (6, 4)
    save(other, (8, 8))
    with pytest.raises(ValueError, match=rf"{said} .*b\.png has 8 x 8 pixels and its picture .*a\.png has 6 x 4"):
        readable([Example(image, "x", **{field: other})])
    other.unlink()
    with pytest.raises(ValueError, match=r"cannot read the image .*b\.png"):
        readable([Example(image, "x", **{field: other})])
