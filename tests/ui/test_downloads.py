"""What a browser may fetch lies in one folder, which has nothing in it but what was offered."""

from pathlib import Path

import pytest

from hnkernels.ui.downloads import forget, offered


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    return tmp_path / "served"


def test_a_file_is_offered_under_its_name_and_anew_when_it_has_changed(served, tmp_path):
    file = tmp_path / "style.pt"
    file.write_bytes(b"first")
    (first,) = map(Path, offered([file]))
    assert first.is_relative_to(served)
    assert (first.name, first.read_bytes()) == ("style.pt", b"first")
    assert offered([file]) == [str(first)]
    file.unlink()
    file.write_bytes(b"the second")
    (second,) = map(Path, offered([file]))
    assert second.read_bytes() == b"the second"
    assert first.read_bytes() == b"first"


def test_links_folders_and_what_is_gone_are_not_offered(served, tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "link.pt").symlink_to(tmp_path / "secret")
    assert offered([tmp_path / "link.pt", tmp_path, tmp_path / "none.pt"]) == []


def test_only_what_a_browser_sent_is_forgotten(served, tmp_path):
    served.mkdir()
    for file in (served / "a.pt", tmp_path / "b.pt"):
        file.write_bytes(b"x")
        forget(file)
    forget(served / "a.pt")
    assert not (served / "a.pt").exists()
    assert (tmp_path / "b.pt").exists()
