"""The bin: everything that goes there comes back."""

import errno
import os

import pytest

from hnkernels.home.recycling import Bin


@pytest.fixture
def parts(tmp_path):
    for part in ("networks", "bin"):
        (tmp_path / part).mkdir()
    return tmp_path


def put(parts, *names):
    files = [parts / "networks" / name for name in names]
    for file in files:
        file.write_text(file.name)
    return Bin(parts / "bin", parts), files


def refusing(*_):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_what_is_deleted_comes_back(parts):
    trash, files = put(parts, "a.pt", "a.json")
    deleted = trash.put("a", [*files, parts / "networks" / "a.optim"])
    assert not any(file.exists() for file in files)
    assert [(one.name, one.part, one.files) for one in trash.all()] == [("a", "networks", ("a.json", "a.pt"))]
    assert sorted(trash.restore(deleted.key)) == sorted(files)
    assert files[0].read_text() == "a.pt"
    assert trash.all() == []


def test_two_of_one_name_are_kept_apart(parts):
    trash, files = put(parts, "a.pt")
    first = trash.put("a", files)
    files[0].write_text("the second")
    second = trash.put("a", files)
    assert first.key != second.key
    trash.restore(second.key)
    assert files[0].read_text() == "the second"
    with pytest.raises(ValueError, match=r"has another a\.pt now; rename that one first"):
        trash.restore(first.key)
    assert len(trash.all()) == 1


def test_a_fault_leaves_everything_where_it_was(parts, monkeypatch):
    trash, files = put(parts, "a.pt", "b.pt")
    rename, calls = os.rename, []

    def failing(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(ValueError, match="cannot be deleted: No space left on device; it is where it was"):
        trash.put("a", files)
    assert all(file.exists() for file in files)
    assert trash.all() == []


@pytest.mark.parametrize("key", ["missing", "../networks", "", None])
def test_what_is_not_there_cannot_come_back(parts, key):
    trash, _ = put(parts)
    with pytest.raises(ValueError, match="is not in the bin"):
        trash.restore(key)


def test_a_record_that_leads_elsewhere_is_not_followed(parts):
    trash, files = put(parts, "a.pt")
    key = trash.put("a", files).key
    (parts / "bin" / key / "deleted.json").write_text('{"name": "a", "part": "../..", "time": 0}')
    with pytest.raises(ValueError, match="is not a name"):
        trash.restore(key)


def test_strange_folders_in_the_bin_are_passed_over(parts):
    trash, files = put(parts, "a.pt")
    (parts / "bin" / "own").mkdir()
    (parts / "bin" / "own" / "deleted.json").write_text("[")
    trash.put("a", files)
    assert [one.name for one in trash.all()] == ["a"]
    assert trash.empty("runs") == []
    assert [one.name for one in trash.empty("networks")] == ["a"]
    assert trash.all() == []
    assert (parts / "bin" / "own").is_dir()


def test_a_bin_that_cannot_be_emptied_says_so(parts, monkeypatch):
    trash, files = put(parts, "a.pt")
    trash.put("a", files)
    monkeypatch.setattr("shutil.rmtree", refusing)
    with pytest.raises(ValueError, match="a cannot be removed: Read-only file system"):
        trash.empty("networks")
    assert [one.name for one in trash.all()] == ["a"]


def test_nothing_is_deleted_that_is_gone(parts):
    trash, _ = put(parts)
    with pytest.raises(ValueError, match="is not there any more"):
        trash.put("a", [parts / "networks" / "a.pt"])
