"""Searching and sorting."""

import pytest

from hnkernels.home.library import COLUMNS, matching, ordered
from hnkernels.home.library.changing import annotate


@pytest.fixture
def entries(library, add, add_weights, home):
    add("Anna", step=3, base="v1-5", activation="relu")
    add("bert", step=20, base="xl", sizes=(16,))
    annotate(library, "networks/bert", "für die Ausstellung")
    add_weights("styles")
    (home.networks / "broken.pt").write_bytes(b"x")
    return library.all()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ["Anna", "bert", "broken", "styles"]),
        ("  ", ["Anna", "bert", "broken", "styles"]),
        ("anna", ["Anna"]),
        ("V1-5", ["Anna"]),
        ("relu context", ["Anna"]),
        ("weights", ["styles"]),
        ("ink", ["styles"]),
        ("FÜR", ["bert"]),
        ("nothing", []),
    ],
)
def test_every_word_has_to_occur(entries, text, found):
    assert [entry.name for entry in matching(entries, text)] == found


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_sorts_and_what_is_broken_comes_last(entries, column, descending):
    names = [entry.name for entry in ordered(entries, column, descending)]
    assert sorted(names) == ["Anna", "bert", "broken", "styles"]
    assert names[-1] == "broken"


def test_sorted_by_step_and_by_name(entries):
    assert [entry.name for entry in ordered(entries, "step", True)][:2] == ["bert", "Anna"]
    assert [entry.name for entry in ordered(entries, "name")] == ["Anna", "bert", "styles", "broken"]


def test_a_column_that_is_none(entries):
    with pytest.raises(ValueError, match="accepted are name, kind"):
        ordered(entries, "colour")
