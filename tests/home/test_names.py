"""Names that come from outside stay names: one part of a path, inside their folder."""

import pytest

from hnkernels.home.names import check_name, child, free_name


@pytest.mark.parametrize("name", ["style", "my style", "größer", "a.b.safetensors", "日本", "x" * 100])
def test_a_name_is_a_name(name, tmp_path):
    assert check_name(name) == name
    assert child(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", ".", "..", "...", ".hidden", "a/b", "/etc/passwd", "../up", "..\\up", "C:\\x", "a\0b", "a\nb"),
        *(
            "x" * 101,
            "é" * 51,
            " style",
            "style ",
            "style.",
            "CON",
            "nul.pt",
            "a\u202eb",
            "\ud800",
            None,
            7,
            b"x",
            ["a"],
        ),
    ],
)
def test_anything_else_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="is not a name"):
        child(tmp_path, name)


def test_a_link_is_not_followed_out_of_the_folder(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "own").symlink_to(inside / "other")
    with pytest.raises(ValueError, match="link out of"):
        child(inside, "link")
    assert child(inside, "own") == inside / "own"


def test_a_free_name_has_the_first_number_that_is_new(tmp_path):
    assert free_name(tmp_path, "a.pt") == "a.pt"
    (tmp_path / "a.pt").touch()
    assert free_name(tmp_path, "a.pt") == "a-2.pt"
    (tmp_path / "a-2.pt").symlink_to("nowhere")
    assert free_name(tmp_path, "a.pt") == "a-3.pt"
    (tmp_path / "run").mkdir()
    assert free_name(tmp_path, "run") == "run-2"
