"""What a folder of training data holds, and what is said of it."""

import json
import os
import unicodedata

import pytest
from PIL import Image

from hnkernels.training import read_image_folder
from hnkernels.training.data.examples import as_examples


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def write(path, text="a cat"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read(folder):
    return [(e.image.relative_to(folder).as_posix(), e.caption) for e in read_image_folder(folder)]


@pytest.fixture
def silent(recwarn):
    yield
    assert not recwarn.list


@pytest.mark.parametrize(
    "name",
    ["a.txt", "a.TXT", "A.txt", "a.caption", "a.Caption", "a.png.txt", "a.png.caption"],
)
def test_a_caption_beside_a_picture_is_read(tmp_path, silent, name):
    save(tmp_path / "a.png")
    write(tmp_path / name, " a cat \n")
    assert read(tmp_path) == [("a.png", "a cat")]


def test_each_picture_gets_the_caption_of_its_own_spelling(tmp_path, silent):
    for stem in ("a", "A", "a.b"):
        save(tmp_path / f"{stem}.png")
        write(tmp_path / f"{stem}.txt", f"caption of {stem}")
    assert {name: caption for name, caption in read(tmp_path)}["a.b.png"] == "caption of a.b"
    if len(os.listdir(tmp_path)) == 6:  # the file system tells cases apart
        assert read(tmp_path)[0] == ("A.png", "caption of A")


def test_accents_may_be_composed_in_either_way(tmp_path, silent):
    save(tmp_path / unicodedata.normalize("NFC", "café.png"))
    write(tmp_path / unicodedata.normalize("NFD", "café.txt"))
    assert [caption for _, caption in read(tmp_path)] == ["a cat"]


def test_of_two_captions_the_txt_counts_and_the_other_is_named(tmp_path):
    save(tmp_path / "a.png")
    write(tmp_path / "a.txt", "tags")
    write(tmp_path / "a.caption", "a sentence")
    with pytest.warns(UserWarning, match=r"have another caption \(1: a\.caption\)"):
        assert read(tmp_path) == [("a.png", "tags")]


@pytest.mark.parametrize(
    "unread",
    ["captions.txt", "captions/a.txt", "a_caption.txt", "a.json", "captions.csv", "metadata.parquet", "meta_cap.json",
     "a.tags", "train.jsonl"],
)  # fmt: skip
def test_no_file_name_becomes_a_caption_while_captions_lie_unread(tmp_path, unread):
    save(tmp_path / "a.png")
    write(tmp_path / unread)
    with pytest.raises(ValueError, match=rf"no caption beside a\.png .* captions may lie in {unread}; name a caption"):
        read(tmp_path)


@pytest.mark.parametrize("other", ["README.md", "readme.txt", "LICENSE.txt", "a.psd", "a.heic", "a.npz", "clip.mp4"])
def test_other_files_are_named(tmp_path, other):
    save(tmp_path / "a.png")
    write(tmp_path / other)
    with pytest.warns(UserWarning, match=f"left out: files of other types .1: {other}"):
        assert read(tmp_path) == [("a.png", "a")]


def test_a_caption_of_a_picture_of_another_type_is_left_out_with_it(tmp_path):
    save(tmp_path / "a dog.png")
    write(tmp_path / "b.heic")
    write(tmp_path / "b.txt")
    with pytest.warns(UserWarning, match=r"captions of pictures that are left out.*b\.txt.*other types \(1: b\.heic"):
        assert read(tmp_path) == [("a dog.png", "a dog")]


def test_pictures_without_a_caption_among_others_are_named(tmp_path):
    save(tmp_path / "a.png")
    write(tmp_path / "a.txt")
    save(tmp_path / "a dog.png")
    with pytest.warns(UserWarning, match=r"no caption beside a dog\.png: the file name is the caption"):
        assert read(tmp_path) == [("a dog.png", "a dog"), ("a.png", "a cat")]


@pytest.mark.parametrize("caption", [None, "", " \n"])
def test_empty_captions_are_named(tmp_path, caption):
    save(tmp_path / "0001.png")
    if caption is not None:
        write(tmp_path / "0001.txt", caption)
    with pytest.warns(UserWarning, match=r"empty captions \(1: 0001\.png"):
        assert read(tmp_path) == [("0001.png", "")]


@pytest.mark.parametrize("suffix", [".PNG", ".jfif", ".tif", ".gif", ".avif", ".JPEG", ".apng", ".tga"])
def test_pictures_of_many_types_are_found(tmp_path, silent, suffix):
    write(tmp_path / f"a cat{suffix}")
    assert read(tmp_path) == [(f"a cat{suffix}", "a cat")]


@pytest.mark.parametrize(
    "name", ["._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/a.png", "@eaDir/a.png/t.jpg",
             ".ipynb_checkpoints/a.png", ".git/a.txt"]
)  # fmt: skip
def test_files_of_the_system_are_left_out(tmp_path, silent, name):
    save(tmp_path / "a.png")
    write(tmp_path / name)
    assert read(tmp_path) == [("a.png", "a")]


def test_a_hidden_picture_is_named(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / ".b.png")
    with pytest.warns(UserWarning, match=r"hidden pictures \(1: \.b\.png"):
        assert read(tmp_path) == [("a.png", "a")]


def test_a_folder_or_a_broken_link_is_not_a_picture(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "x.png").mkdir()
    (tmp_path / "y.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning, match=r"links to nothing, or not files \(1: y\.png\)"):
        assert read(tmp_path) == [("a.png", "a")]


def test_pictures_in_folders_below_are_found_in_the_order_of_their_paths(tmp_path, silent):
    for name in ("train/b/1.png", "train/a.png", "cover.png"):
        write(save(tmp_path / name).with_suffix(".txt"), name)
    assert read(tmp_path) == [(name, name) for name in ("cover.png", "train/a.png", "train/b/1.png")]


def test_the_number_of_a_folder_is_no_repeat_count(tmp_path):
    write(save(tmp_path / "10_cat" / "0.png").with_suffix(".txt"))
    with pytest.warns(UserWarning, match="the number of 10_cat is not a repeat count here"):
        assert read(tmp_path) == [("10_cat/0.png", "a cat")]


def test_links_may_go_round_and_no_folder_is_read_twice(tmp_path):
    data = tmp_path / "data"
    save(data / "b" / "b.png")
    save(tmp_path / "elsewhere" / "c.png")
    (data / "a").symlink_to("b", target_is_directory=True)
    (data / "b" / "loop").symlink_to(data, target_is_directory=True)
    (data / "b" / "up").symlink_to(tmp_path, target_is_directory=True)
    (data / "c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.warns(UserWarning, match=r"links to folders that are read anyway \(3: a, b/loop, b/up\)"):
        assert [name for name, _ in read(data)] == ["b/b.png", "c/c.png"]


def test_what_a_training_run_wrote_is_no_data(tmp_path, silent):
    save(tmp_path / "a.png")
    for out in (tmp_path, tmp_path / "runs" / "train"):
        write(out / "log.csv")
        (out / "checkpoints").mkdir()
        save(out / "previews" / "step-000001.png")
    assert read(tmp_path) == [("a.png", "a")]


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    write(tmp_path / "a.heic")
    with pytest.raises(ValueError, match=r"holds no images; accepted are \.png.*left out: files of other.*a\.heic"):
        read(tmp_path)


def test_pictures_that_a_table_does_not_name_and_captions_that_it_replaces_are_named(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "below" / "b.png")
    write(tmp_path / "a.txt")
    write(tmp_path / "metadata.jsonl", json.dumps({"file_name": "a.png", "text": "an a"}))
    with pytest.warns(UserWarning, match=r"does not name \(1: below/b\.png\).*have another caption \(1: a\.txt\)"):
        assert read(tmp_path) == [("a.png", "an a")]


def test_a_table_is_for_its_folder_and_those_below(tmp_path, silent):
    write(save(tmp_path / "a" / "0.png").with_suffix(".txt"), "beside")
    save(tmp_path / "b" / "images" / "1.png")
    write(tmp_path / "b" / "metadata.csv", "file_name,text\nimages/1.png,listed\n")
    assert sorted(read(tmp_path)) == [("a/0.png", "beside"), ("b/images/1.png", "listed")]


def test_the_summary_is_printed_once_where_no_warning_says_it(tmp_path, silent, capsys):
    write(save(tmp_path / "train" / "0.png").with_suffix(".txt"))
    write(tmp_path / ".DS_Store")
    as_examples(tmp_path, progress=True)
    as_examples(tmp_path)
    read_image_folder(tmp_path)
    assert capsys.readouterr().err == (
        f"{tmp_path}: 1 picture, captions from .txt (1); pictures in train (1); "
        "left out: hidden files and the system's (1: .DS_Store)\n"
    )
