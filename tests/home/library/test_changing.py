"""Renaming, copying, notes, deleting: all files of a network, or none."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from hnkernels import CheckpointError
from hnkernels.home.library.changing import annotate, copy, delete, rename
from tests.home.library.conftest import contents

BAD_NAMES = ["", " ", "..", "../x", "a/b", "a\\b", "/etc/x", ".hidden", "x\0", "x\n", "con", "x" * 101, None, 3]


@pytest.fixture
def full(add, home):
    """A network with all files that may go with one."""
    key = add("style")
    add("style", ".pt")
    for suffix in (".pt.optim", ".txt", ".preview.png"):
        (home.networks / f"style{suffix}").write_bytes(suffix.encode())
    (home.networks / "style.json").write_text('{"notes": "good", "activation text": "ink"}')
    (home.networks / "style-2.pt.optim").write_bytes(b"of another")
    return key


def test_renaming_takes_all_files_along_and_leaves_their_bytes(library, home, full):
    before = contents(home.networks)
    digest = library.entry(full).facts.hash
    assert rename(library, full, "ink") == "networks/ink"
    renamed = {name.replace("style", "ink") if "-2" not in name else name: data for name, data in before.items()}
    assert contents(home.networks) == renamed
    entry = library.entry("networks/ink")
    assert (entry.facts.hash, entry.notes, entry.facts.title) == (digest, "good", "style")


@pytest.mark.parametrize("name", [*BAD_NAMES, "style.pt", "x.SAFETENSORS"])
def test_names_that_are_none(library, home, full, name):
    before = contents(home.path)
    with pytest.raises(ValueError, match=r"is not a name|with an extension"):
        rename(library, full, name)
    assert contents(home.path) == before


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".json", ".pt.optim"])
def test_a_name_of_which_any_file_is_there_is_refused(library, home, full, suffix):
    (home.networks / f"ink{suffix}").write_bytes(b"x")
    before = contents(home.path)
    with pytest.raises(ValueError, match=f"there is a ink{suffix} in networks already"):
        rename(library, full, "ink")
    assert contents(home.path) == before


def test_a_dangling_link_counts_as_a_name_that_is_taken(library, home, full):
    (home.networks / "ink.pt").symlink_to(home.networks / "nothing")
    with pytest.raises(ValueError, match=r"there is a ink\.pt"):
        rename(library, full, "ink")


def test_renaming_that_fails_on_the_way_is_undone(library, home, full, monkeypatch):
    before, real, calls = contents(home.path), os.rename, []

    def third_fails(old, new):
        calls.append(old)
        if len(calls) == 3:
            raise OSError(5, "Input/output error")
        real(old, new)

    monkeypatch.setattr(os, "rename", third_fails)
    with pytest.raises(ValueError, match="Input/output error; it is as it was"):
        rename(library, full, "ink")
    assert contents(home.path) == before


def test_of_two_that_take_one_name_at_once_one_is_refused(library, home, add):
    keys = [add(name) for name in ("a", "b", "c", "d")]

    def attempt(key):
        try:
            return rename(library, key, "same")
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor() as threads:
        results = list(threads.map(attempt, keys))
    assert results.count("networks/same") == 1
    assert len(list(home.networks.glob("*.safetensors"))) == 4


def test_networks_of_a_run_are_copied_and_not_changed(library, home, add):
    key = add("style", folder=home.runs / "first")
    before = contents(home.runs)
    for change in (
        lambda: rename(library, key, "x"),
        lambda: delete(library, key),
        lambda: annotate(library, key, "x"),
    ):
        with pytest.raises(ValueError, match="belongs to the run first; copy it"):
            change()
    assert copy(library, key) == "networks/style"
    assert copy(library, key) == "networks/style-2"
    assert copy(library, key, "mine") == "networks/mine"
    assert contents(home.runs) == before
    original = (home.runs / "first" / "style.safetensors").read_bytes()
    assert {(home.networks / f"{n}.safetensors").read_bytes() for n in ("style", "style-2", "mine")} == {original}
    with pytest.raises(ValueError, match="already"):
        copy(library, key, "mine")
    with pytest.raises(ValueError, match="is not a name"):
        copy(library, key, "../mine")


def test_a_copy_on_a_full_disk_leaves_nothing(library, home, full, monkeypatch):
    library.all()
    before, real, calls = contents(home.path), os.fsync, []

    def second_fails(descriptor):
        calls.append(descriptor)
        if len(calls) >= 3:  # a file and its folder went well
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(CheckpointError, match="No space left on device"):
        copy(library, full, "ink")
    assert contents(home.path) == before


def test_a_broken_network_is_not_copied(library, home):
    (home.networks / "a.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.pt: "):
        copy(library, "networks/a")


def test_notes_are_kept_where_a1111_keeps_them_and_leave_the_rest_of_the_file(library, home, full):
    annotate(library, full, "better\nnow: ü")
    assert library.entry(full).notes == "better\nnow: ü"
    assert json.loads((home.networks / "style.json").read_text()) == {
        "notes": "better\nnow: ü",
        "activation text": "ink",
    }
    annotate(library, full, "")
    assert library.entry(full).notes == ""


def test_notes_that_are_too_long(library, home, full):
    before = contents(home.path)
    with pytest.raises(ValueError, match="at most 10000 characters"):
        annotate(library, full, "x" * 10_001)
    assert contents(home.path) == before


@pytest.mark.parametrize("content", [b"x", b"[]", b'"x"', b"\xff", b"[" * 10**5, b" " * (2**20 + 1)])
def test_a_file_that_holds_no_notes_is_left_alone(library, home, full, content):
    (home.networks / "style.json").write_bytes(content)
    assert library.entry(full).notes == ""
    with pytest.raises(ValueError, match=r"style\.json (holds no notes|is larger)"):
        annotate(library, full, "x")
    assert (home.networks / "style.json").read_bytes() == content


def test_notes_on_a_full_disk_are_as_they_were(library, home, full, monkeypatch):
    def fails(descriptor):
        raise OSError(28, "No space left on device")

    before = contents(home.path)
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(CheckpointError, match="No space left on device"):
        annotate(library, full, "x")
    assert contents(home.path) == before


def test_what_is_deleted_comes_back(library, home, full):
    before = contents(home.networks)
    deleted = delete(library, full)
    assert list(contents(home.networks)) == ["style-2.pt.optim"]
    assert [one.name for one in library.bin.all()] == ["style"]
    assert library.all() == []
    library.bin.restore(deleted.key)
    assert contents(home.networks) == before
    assert library.bin.all() == []


def test_a_broken_file_can_be_deleted(library, home):
    (home.networks / "a.pt").write_bytes(b"x")
    delete(library, "networks/a")
    assert library.all() == []


def test_a_name_that_could_not_come_back_is_not_deleted(library, home):
    (home.networks / f"{'x' * 99}.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="rename it before"):
        delete(library, f"networks/{'x' * 99}")
    assert len(library.all()) == 1
    rename(library, f"networks/{'x' * 99}", "short")
    delete(library, "networks/short")


@pytest.mark.parametrize(
    "change", [lambda lib, key: rename(lib, key, "x"), delete, copy], ids=["rename", "delete", "copy"]
)
def test_a_network_that_is_gone_meanwhile(library, home, add, change):
    key = add()
    library.all()
    (home.networks / "style.safetensors").unlink()
    with pytest.raises(ValueError, match="there is no network 'style' any more"):
        change(library, key)
