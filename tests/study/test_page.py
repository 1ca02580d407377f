"""The page says what the results show, and nothing else."""

import pytest
from PIL import Image

from hnkernels.study.page import write_page
from hnkernels.study.protocol import Cell
from hnkernels.study.questions import Entry, Question
from hnkernels.study.results import Result, Results
from tests.study.cases import PROTOCOL

SEEDS = (0, 1, 2)
BASE, BETTER, WORSE, TRADE, PRECISE, SAME, FAILED, MISSING = map(
    Cell, ("base", "better", "worse", "trade", "precise", "same", "failed", "missing")
)
QUESTION = Question(
    "first",
    "The first question",
    "What is compared.",
    Entry("the baseline", BASE),
    tuple(Entry(f"{cell.name} one", cell) for cell in (BETTER, WORSE, TRADE, PRECISE, SAME, FAILED, MISSING)),
    "Where it is not so.",
)
LATER = Question("later", "Another one", "Not yet.", Entry("none", Cell("none")), (), "Nowhere.")


def unfilled(page):
    """Its text with paragraphs in one line each."""
    return page.read_text(encoding="utf-8").replace("\n", " ")


def scores(style, loss):
    return {"1": {"style": style, "content": 1.0, "both": style, "loss": loss}}


@pytest.fixture
def results(tmp_path):
    results = Results(tmp_path / "recipes.jsonl", PROTOCOL)
    for seed in SEEDS:
        style, loss = 0.5 + 0.1 * seed, 0.2 - 0.01 * seed
        results.add(BASE, seed, Result(1000, 2, 5.0, scores(style, loss)))
        results.add(BETTER, seed, Result(1000, 2, 5.0, scores(style + 0.1, loss)))
        results.add(WORSE, seed, Result(1000, 2, 5.0, scores(style, loss + 0.01)))
        results.add(TRADE, seed, Result(1000, 2, 5.0, scores(style + 0.1, loss + 0.01)))
        results.add(PRECISE, seed, Result(1000, 2, 5.0, scores(style, loss - 0.01)))
        results.add(FAILED, seed, Result(0, 2, 0.0, {}, "step 1: the loss is nan"))
        if seed:
            results.add(SAME, seed, Result(1000, 2, 5.0, scores(style + 0.3 * (-1) ** seed, loss)))
    return results


@pytest.fixture
def page(tmp_path, results):
    return unfilled(write_page(tmp_path, [QUESTION, LATER], results, SEEDS))


def test_a_table_has_means_and_paired_differences(page):
    assert "| the baseline | 1,000 | 2 | 5 | 0.60 ± 0.06 | 1.00 ± 0.00 | 0.60 ± 0.06 | 0.1900 ± 0.0058 |" in page
    assert "| better one | 1,000 | 2 | 5 | 0.70 ± 0.06<br>**+0.10 ± 0.00** |" in page
    assert "0.2000 ± 0.0058<br>**+0.0100 ± 0.0000** |" in page
    assert "| same one | 1,000 | 2 | 5 | 0.65 ± 0.35<br>+0.00 ± 0.30 |" in page
    assert "| failed one |  |  |  | diverged | diverged |" in page


def test_what_is_seen_is_what_differs_from_the_baseline(page):
    assert "Style: better with `better one`, `trade one`." in page
    assert "Content: no difference is shown." in page
    assert "Held-out loss: better with `precise one`; worse with `worse one`, `trade one`." in page


def test_what_follows_goes_by_the_pictures_that_are_both(page):
    assert (
        "More pictures are handwriting and the right digit with `better one` (+0.10 ± 0.00), and with `trade one`, "
        "than with `the baseline`. The held-out loss is lower with `precise one`, which the pictures do not show. No "
        "difference in anything is shown for `same one`. Do not use `failed one` like this: runs diverged." in page
    )


def test_what_is_missing_is_said(page):
    assert "failed one: 3 of 3 runs diverged." in page
    assert "same one: 2 of 3 seeds have been run." in page
    assert "Not run yet: missing one." in page
    assert "Not run yet: Another one." in page


def test_where_nothing_is_better_that_is_said(tmp_path, results):
    question = QUESTION._replace(baseline=QUESTION.others[0], others=(QUESTION.baseline,))
    page = unfilled(write_page(tmp_path, [question], results, SEEDS))
    assert "Nothing here makes more pictures handwriting and the right digit than `better one`." in page
    assert "Fewer are with `the baseline`." in page


def test_the_same_results_give_the_same_bytes(tmp_path, results, page):
    plot = tmp_path / "recipes" / "first.png"
    before = plot.read_bytes()
    assert f"]({plot.parent.name}/{plot.name})" in page
    Image.open(plot).verify()
    again = write_page(tmp_path, [QUESTION, LATER], results, SEEDS)
    assert (unfilled(again), plot.read_bytes()) == (page, before)
