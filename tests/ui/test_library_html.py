"""The library as HTML: what strangers wrote stays text."""

from pathlib import Path

import pytest

from hnkernels.convert.lora_export import LoraLayer, LoraReport
from hnkernels.home.library import Entry
from hnkernels.home.library.facts import Facts
from hnkernels.ui.library import html

HOSTILE = "<img src=x onerror=alert(1)>\"'&${alert(1)}{{value}}"


def entry(name="style", **facts):
    given = {"kind": "context", "activation": "relu", "widths": (48,), "step": 1200} | facts
    return Entry(f"networks/{name}", name, (Path(f"{name}.pt"),), (), Facts(**given), "", 2_000_000, 0.0)


def test_texts_of_strangers_are_neither_markup_nor_templates():
    hostile = entry(HOSTILE, title=HOSTILE, base=HOSTILE, warnings=(HOSTILE,), styles=(HOSTILE,))
    broken = entry("x", problem=HOSTILE)
    report = LoraReport(1, (LoraLayer(HOSTILE, 0.0, 0.0),))
    for shown in (
        html.table([hostile, broken], True, None, "name", False),
        html.details(hostile),
        html.details(broken),
        html.lora_errors(report),
        html.announcement(HOSTILE),
        html.announcement(HOSTILE, fault=True),
    ):
        assert "<img" not in shown
        assert not set("{}$") & set(shown)
        assert "onerror" in shown


def test_the_sorted_column_says_so():
    shown = html.table([entry()], True, None, "step", True)
    assert shown.count('aria-sort="descending"') == 1
    assert shown.count('aria-sort="none"') == 9


@pytest.mark.parametrize(
    ("any_there", "sentence"),
    [(False, "No network here yet: train one, or drop a file here."), (True, "No network matches these words")],
)
def test_nothing_to_show(any_there, sentence):
    assert sentence in html.table([], any_there, None, "name", False)


def test_what_is_said_of_a_network():
    shown = html.details(entry(layer_norm=True, hash="0123456789", parameters=1234, dtype="float32"))
    for text in ("relu, LayerNorm", "1,200", "0123456789", "1,234 in float32", "hypernet:style:1", "2 MB"):
        assert text in shown
    assert "Convert it" in html.details(entry(a1111="Convert it."))
