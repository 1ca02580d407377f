"""Files and folders are whole: the old or the new, whatever fails while they are written."""

import os

import pytest

from hnkernels.checkpoint.atomic import clear_leftovers, placing, replacing
from tests.faults import ERRORS, Killed, every_fault


def write_file(path, text):
    with replacing(path) as file:
        file.write(text.encode())


def write_folder(path, text):
    with placing(path) as folder:
        folder.mkdir()
        (folder / "a").write_bytes(text.encode())
        (folder / "b").write_bytes(text.encode())


def content(path):
    return {file.read_text() for file in path.iterdir()} if path.is_dir() else {path.read_text()}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [*ERRORS, Killed()], ids=["full", "denied", "killed"])
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_fault_leaves_the_old_or_the_new_and_nothing_beside_it(tmp_path, monkeypatch, write, error, after):
    faults = 0
    for number, fault in enumerate(every_fault(monkeypatch, error, after=after)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder / "x", "old")
        try:
            with fault:
                write(folder / "x", "new")
        except type(error):
            faults += 1
            assert content(folder / "x") in ({"old"}, {"new"})
        else:
            assert content(folder / "x") == {"new"}
        assert os.listdir(folder) == ["x"]
    assert faults >= 3


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_what_a_killed_process_left_is_tidied_up(tmp_path, monkeypatch, write):
    for number, fault in enumerate(every_fault(monkeypatch, Killed(), dead=True)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder / "x", "old")
        try:
            with fault:
                write(folder / "x", "new")
        except Killed:
            clear_leftovers(folder)
        assert content(folder / "x") in ({"old"}, {"new"})
        assert os.listdir(folder) == ["x"]


def test_only_what_is_left_over_is_tidied_up(tmp_path):
    names = {".hidden", ".x.tmp", "x.0123456789ab.tmp", ".x.0123456789ab.bak", "x.old"}
    for name in names | {".x.0123456789ab.tmp"}:
        (tmp_path / name).touch()
    clear_leftovers(tmp_path)
    assert set(os.listdir(tmp_path)) == names


def test_a_name_as_long_as_a_file_system_takes(tmp_path):
    path = tmp_path / ("ü" * 127)
    write_file(path, "new")
    assert content(path) == {"new"}
