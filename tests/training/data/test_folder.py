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
    ["captions.txt", "captions/a.txt", "a_caption.txt", "a.json", "captions.csv", "train.parquet", "meta_cap.json",
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


def test_the_number_of_a_folder_says_how_often_its_pictures_are_used(tmp_path, silent):
    for name in ("10_a cat/0.png", "10_a cat/below/1.png", "10_a cat/3_night/2.png", "other/3.png", "x/2_dog/4.png"):
        write(save(tmp_path / name).with_suffix(".txt"), name)
    assert {e.image.stem: e.repeats for e in read_image_folder(tmp_path)} == {"0": 10, "1": 10, "2": 3, "3": 1, "4": 2}


def test_the_folder_of_the_data_itself_has_no_number(tmp_path, silent):
    save(tmp_path / "10_cat" / "a dog.png")
    assert [(e.caption, e.repeats) for e in read_image_folder(tmp_path / "10_cat")] == [("a dog", 1)]


def test_the_rest_of_the_name_of_a_numbered_folder_is_the_caption_where_there_is_none(tmp_path, silent, capsys):
    save(tmp_path / "10_sks cat_toy" / "IMG_1.png")
    save(tmp_path / "1_cat" / "2.png")
    examples = as_examples(tmp_path, progress=True)
    assert [(e.caption, e.repeats) for e in examples] == [("sks cat_toy", 10), ("cat", 1)]
    said = capsys.readouterr().err
    assert "captions from names of folders (2)" in said
    assert "pictures in 10_sks cat_toy (1, each 10 times per epoch), 1_cat (1)" in said


def test_a_caption_beside_the_picture_comes_before_the_name_of_its_folder(tmp_path):
    write(save(tmp_path / "10_cat" / "0.png").with_suffix(".txt"), "a black cat")
    save(tmp_path / "10_cat" / "1.png")
    with pytest.warns(UserWarning, match=r"no caption beside 10_cat/1\.png: the name of the folder is the caption"):
        assert read(tmp_path) == [("10_cat/0.png", "a black cat"), ("10_cat/1.png", "cat")]


def test_no_name_of_a_folder_becomes_a_caption_while_captions_lie_unread(tmp_path):
    save(tmp_path / "10_cat" / "0.png")
    write(tmp_path / "10_cat" / "captions.json")
    with pytest.raises(ValueError, match=r"no caption beside 10_cat/0\.png .* may lie in 10_cat/captions\.json"):
        read(tmp_path)


def test_pictures_of_a_folder_with_the_number_0_are_left_out(tmp_path):
    save(tmp_path / "0_reg" / "a.png")
    save(tmp_path / "1_cat" / "b.png")
    with pytest.warns(UserWarning, match=r"left out: pictures in folders whose number is 0 \(1: 0_reg/a\.png\)"):
        assert read(tmp_path) == [("1_cat/b.png", "cat")]


@pytest.mark.parametrize("name", ["20230512_holiday", "1001_x", "9" * 200 + "_x"])
def test_a_number_that_cannot_be_meant_as_repeats_is_refused(tmp_path, name):
    save(tmp_path / name / "a.png")
    with pytest.raises(ValueError, match=rf"folder .*{name} says .* numbers up to 1000, so rename it"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["cat_10", "10", "10-cat", "_10_cat", "\u0661_cat"])
def test_other_names_of_folders_are_not_repeats(tmp_path, silent, name):
    save(tmp_path / name / "a dog.png")
    assert [(e.caption, e.repeats) for e in read_image_folder(tmp_path)] == [("a dog", 1)]


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


def test_what_a_training_run_wrote_is_not_data(tmp_path, silent):
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
