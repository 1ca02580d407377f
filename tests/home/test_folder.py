"""A home: its parts, and models and data by name."""

import os

import pytest

from hnkernels.assets import TINY_SD
from hnkernels.home.folder import EMBEDDED, Home
from hnkernels.home.sample_data import HANDWRITING, write_sample_data
from hnkernels.training.data.folder import read_folder


def test_a_new_home_has_the_embedded_model_and_pictures_to_train_on(home):
    write_sample_data(home)
    assert home.models() == {EMBEDDED: TINY_SD}
    assert list(home.datasets()) == [HANDWRITING]
    contents = read_folder(home.dataset(HANDWRITING))
    assert len(contents.rows) == 256
    assert {example.caption.split()[0] for example in contents.rows} == {"digit"}


def test_data_of_ones_own_are_not_added_to(home):
    (home.data / "mine").mkdir()
    write_sample_data(home)
    assert list(home.datasets()) == ["mine"]


def test_folders_that_were_named_are_there_by_their_names(tmp_path):
    for folder in ("a/data", "b/data", "model"):
        (tmp_path / folder).mkdir(parents=True)
    home = Home(tmp_path / "home", models=[tmp_path / "model"], data=[tmp_path / "a/data", tmp_path / "b/data"])
    home.make()
    assert home.model("model") == tmp_path / "model"
    assert home.dataset("data") == tmp_path / "a/data"
    assert home.dataset("data-2") == tmp_path / "b/data"


def test_models_of_ones_own_are_folders_of_pipelines(home):
    (home.own_models / "merged").mkdir()
    (home.own_models / "merged" / "model_index.json").write_text("{}")
    (home.own_models / "notes").mkdir()
    assert list(home.models()) == [EMBEDDED, "merged"]


@pytest.mark.parametrize("name", ["../data", "/etc", "", None, 3, "Embedded", "hnkernels-home"])
def test_only_what_is_listed_can_be_named(home, name):
    with pytest.raises(ValueError, match="there is no model"):
        home.model(name)
    with pytest.raises(ValueError, match="there is no data set"):
        home.dataset(name)


def test_links_out_of_the_home_are_not_data(home, tmp_path):
    (tmp_path / "secret").mkdir()
    (home.data / "link").symlink_to(tmp_path / "secret")
    assert home.datasets() == {}


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--data .*missing is not a folder"):
        Home(tmp_path, data=[tmp_path / "missing"])


def test_a_home_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written to: .*; name another folder"):
        Home(tmp_path / "file" / "home").make()


def test_a_home_that_vanished_is_empty(home):
    os.rename(home.path, home.path.with_name("gone"))
    assert home.datasets() == {}
    assert list(home.models()) == [EMBEDDED]
