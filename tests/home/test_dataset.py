"""The pictures of a data folder, looked at and edited."""

import json

import numpy as np
import pytest
from PIL import Image

from hnkernels.home.dataset import THUMBNAIL, Dataset
from hnkernels.training.data.buckets import Buckets
from hnkernels.training.data.folder import read_folder


def picture(path, size=(40, 20), caption=None):
    Image.new("RGB", size, "white").save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)


def test_pictures_come_a_part_at_a_time(tmp_path):
    for number in range(5):
        picture(tmp_path / f"{number}.png", (400, 200), f"caption {number}")
    data = Dataset(tmp_path)
    assert len(data) == 5
    items = data.items(3, 10)
    assert [(item.index, item.caption) for item in items] == [(3, "caption 3"), (4, "caption 4")]
    assert items[0].thumbnail.size == (THUMBNAIL, THUMBNAIL // 2)


def test_one_that_cannot_be_read_is_grey_and_says_why(tmp_path):
    picture(tmp_path / "a.png", caption="a")
    picture(tmp_path / "b.png", caption="b")
    (tmp_path / "b.png").write_bytes(b"not a picture")
    items = Dataset(tmp_path).items(0, 2)
    assert items[0].caption == "a"
    assert items[1].caption.startswith("cannot be read: ")


def test_an_edited_caption_is_what_training_reads(tmp_path):
    picture(tmp_path / "a.png", caption="old")
    data = Dataset(tmp_path)
    data.write_caption(0, "new, grün")
    assert data.caption(0) == "new, grün"
    assert read_folder(tmp_path).rows[0].caption == "new, grün"


def test_pictures_that_are_called_by_their_names_all_get_captions(tmp_path):
    picture(tmp_path / "a cat.png")
    picture(tmp_path / "a dog.png")
    Dataset(tmp_path).write_caption(0, "a sleeping cat")
    assert [example.caption for example in read_folder(tmp_path).rows] == ["a sleeping cat", "a dog"]


def test_captions_of_a_table_are_not_changed(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "from the table"}))
    with pytest.raises(ValueError, match=r"come from metadata\.jsonl; change this one there"):
        Dataset(tmp_path).write_caption(0, "new")
    assert Dataset(tmp_path).caption(0) == "from the table"


def test_a_full_disk_leaves_the_caption(tmp_path, monkeypatch):
    picture(tmp_path / "a.png", caption="old")
    data = Dataset(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ValueError, match="cannot be written: No space left on device"):
        data.write_caption(0, "new")
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize("index", [-1, 1, 10**9, "0", None, 0.5])
def test_a_picture_that_is_not_there(tmp_path, index):
    picture(tmp_path / "a.png", caption="a")
    with pytest.raises(ValueError, match="there is no picture"):
        Dataset(tmp_path).caption(index)


def test_a_caption_may_not_be_a_book(tmp_path):
    picture(tmp_path / "a.png", caption="a")
    with pytest.raises(ValueError, match="10000 are accepted"):
        Dataset(tmp_path).write_caption(0, "x" * 10_001)


def shaded(image):
    """Which columns and rows are red."""
    red = np.asarray(image)[..., 1] < 250
    return red.all(axis=0), red.all(axis=1)


def test_what_a_square_crops_is_shaded(tmp_path):
    picture(tmp_path / "a.png", (400, 200), "a")
    image, said = Dataset(tmp_path).cropped(0, 64, None)
    columns, rows = shaded(image)
    assert columns.sum() == 200
    assert not columns[100:300].any()
    assert not rows.any()
    assert said == "400 × 200 pixels, trained at 64 × 64; 50% of it is cropped."


def test_what_a_bucket_crops_is_shaded(tmp_path):
    picture(tmp_path / "a.png", (400, 200), "a")
    image, said = Dataset(tmp_path).cropped(0, 512, Buckets(512, 64, 2.0))
    assert said == "400 × 200 pixels, trained at 640 × 384; 17% of it is cropped."
    columns, _ = shaded(image)
    assert 60 < columns.sum() < 70
