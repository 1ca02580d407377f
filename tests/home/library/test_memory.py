"""A file is read once, until it changes."""

import json
import os

import pytest

from hnkernels.home.library import Library
from hnkernels.home.library import library as module


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read, in order."""
    names = []
    real = module.read_facts
    monkeypatch.setattr(module, "read_facts", lambda path: names.append(path.name) or real(path))
    return names


def test_a_thousand_files_are_read_once(library, add, home, reads):
    add()
    original = (home.networks / "style.safetensors").read_bytes()
    for number in range(999):
        (home.networks / f"{number}.safetensors").write_bytes(original)
    assert len(library.all()) == 1000
    assert len(reads) == 1000
    assert len(library.all()) == 1000
    assert len(Library(home).all()) == 1000  # after a new start
    assert len(reads) == 1000


def test_a_file_that_has_changed_is_read_again_and_one_that_is_gone_is_forgotten(library, add, home, reads):
    add("a")
    add("b")
    library.all()
    add("a", step=5)
    assert [entry.facts.step for entry in library.all()] == [5, 0]
    assert reads == ["a.safetensors", "b.safetensors", "a.safetensors"]
    (home.networks / "b.safetensors").unlink()
    assert [entry.name for entry in library.all()] == ["a"]
    add("b")
    library.all()
    assert reads[3:] == ["b.safetensors"]


def test_what_cannot_be_read_now_is_asked_again(library, add, monkeypatch):
    add()

    def fails(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "read_facts", fails)
    assert "cannot be read: Permission denied" in library.all()[0].facts.problem
    monkeypatch.undo()
    assert library.all()[0].facts.problem == ""


def test_a_file_that_goes_while_it_is_read_is_not_listed(library, add, home, monkeypatch):
    add()
    real = module.read_facts

    def late(path):
        path.unlink()
        return real(path)

    monkeypatch.setattr(module, "read_facts", late)
    assert library.all() == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[" * 100_000,
        "[]",
        '{"version": "0", "files": {}}',
        '{"files": 3}',
        json.dumps({"version": module.__name__, "files": {}}),
    ],
)
def test_a_damaged_memory_costs_time_alone(add, home, content):
    add()
    (home.path / ".library.json").write_text(content)
    assert Library(home).all()[0].facts.kind == "context"


def test_a_memory_of_wrong_types_is_not_believed(library, add, home):
    add()
    library.all()
    memory = home.path / ".library.json"
    said = json.loads(memory.read_text())
    size, changed, _ = said["files"]["networks/style.safetensors"]
    for value in ("a text", {"kind": 3}, None):
        said["files"]["networks/style.safetensors"] = [size, changed, value]
        memory.write_text(json.dumps(said))
        assert Library(home).all()[0].facts.kind == "context"


def test_a_memory_that_is_a_link_is_neither_read_nor_written(add, home, tmp_path):
    add()
    outside = tmp_path / "outside.json"
    outside.write_text("kept")
    (home.path / ".library.json").symlink_to(outside)
    assert Library(home).all()
    assert outside.read_text() == "kept"


def test_a_memory_that_cannot_be_written_is_done_without(add, home, monkeypatch):
    add()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert Library(home).all()
    assert not (home.path / ".library.json").exists()
