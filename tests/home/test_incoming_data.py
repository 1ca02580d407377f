"""Pictures that a browser sent become a data set, or nothing."""

import pytest
from PIL import Image

from hnkernels.home.incoming_data import take_pictures


@pytest.fixture
def sent(tmp_path):
    folder = tmp_path / "sent"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "a.txt").write_text("a thing")
    return folder


def test_pictures_and_captions(home, sent):
    folder = take_pictures(home, "mine", [sent / "a.png", sent / "a.txt"])
    assert home.dataset("mine") == folder
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "a.txt"]


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("../mine", ["a.png"], "is not a name"),
        ("mine", [], "there is no file to add"),
        ("mine", ["a.txt"], "holds no images"),
        ("mine", ["a.png", "a.exe"], "a.exe is neither a picture nor a caption"),
        ("mine", ["a.png", "gone.png"], "cannot be kept: No such file"),
        ("taken", ["a.png"], "there is a data set 'taken' already"),
        ("mine", ["a.png", "a.png"], "several files are named a.png"),
    ],
)
def test_anything_else_leaves_nothing(home, sent, name, files, said):
    (home.data / "taken").mkdir()
    (sent / "a.exe").write_bytes(b"MZ")
    with pytest.raises(ValueError, match=said):
        take_pictures(home, name, [sent / file for file in files])
    assert [path.name for path in home.data.iterdir()] == ["taken"]
