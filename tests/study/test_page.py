"""The page says what the results show, and nothing else."""

import pytest
from PIL import Image

from hnkernels.study.page import write_page
from hnkernels.study.protocol import Cell
from hnkernels.study.questions import Entry, Question
from hnkernels.study.results import Result, Results
from tests.study.cases import PROTOCOL

SEEDS = (0, 1, 2)
BASE, BETTER, WORSE, TRADE, SAME, FAILED, MISSING = map(
    Cell, ("base", "better", "worse", "trade", "same", "failed", "missing")
)
QUESTION = Question(
    "first",
    "The first question",
    "What is compared.",
    Entry("the baseline", BASE),
    tuple(Entry(f"{cell.name} one", cell) for cell in (BETTER, WORSE, TRADE, SAME, FAILED, MISSING)),
    "Where it is not so.",
)
LATER = Question("later", "Another one", "Not yet.", Entry("none", Cell("none")), (), "Nowhere.")


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
        results.add(FAILED, seed, Result(0, 2, 0.0, {}, "step 1: the loss is nan"))
        if seed:
            results.add(SAME, seed, Result(1000, 2, 5.0, scores(style + 0.3 * (-1) ** seed, loss)))
    return results


@pytest.fixture
def page(tmp_path, results):
    return write_page(tmp_path, [QUESTION, LATER], results, SEEDS).read_text(encoding="utf-8")


def test_a_table_has_means_and_paired_differences(page):
    assert "| the baseline | 1,000 | 2 | 5 | 0.60 ± 0.06 | 1.00 ± 0.00 | 0.60 ± 0.06 | 0.1900 ± 0.0058 |" in page
    assert "| better one | 1,000 | 2 | 5 | 0.70 ± 0.06<br>**+0.10 ± 0.00** |" in page
    assert "0.2000 ± 0.0058<br>**+0.0100 ± 0.0000** |" in page
    assert "| same one | 1,000 | 2 | 5 | 0.65 ± 0.35<br>+0.00 ± 0.30 |" in page
    assert "| failed one |  |  |  | diverged | diverged |" in page


def test_what_follows_is_what_is_better_in_something_and_worse_in_nothing(page):
    assert "Better than `the baseline` in something and worse in nothing: `better one` (style and both)." in page
    assert "A trade: `trade one` gains style and both and loses held-out loss." in page
    assert "Worse, and better in nothing: `worse one`, `failed one`." in page
    assert "These runs show no difference for `same one`." in page
    assert "Content: no difference to `the baseline` is shown." in page


def test_what_is_missing_is_said(page):
    assert "failed one: 3 of 3 runs diverged." in page
    assert "same one: 2 of 3 seeds have been run." in page
    assert "Not run yet: missing one." in page
    assert "Another one" not in page


def test_where_nothing_is_better_the_baseline_is_kept(tmp_path, results):
    question = QUESTION._replace(others=(QUESTION.others[1],))
    page = write_page(tmp_path, [question], results, SEEDS).read_text(encoding="utf-8")
    assert "Keep `the baseline`: nothing here is better in something and worse in nothing." in page


def test_the_same_results_give_the_same_bytes(tmp_path, results, page):
    plot = tmp_path / "recipes" / "first.png"
    before = plot.read_bytes()
    assert f"]({plot.parent.name}/{plot.name})" in page
    Image.open(plot).verify()
    again = write_page(tmp_path, [QUESTION, LATER], results, SEEDS)
    assert (again.read_text(encoding="utf-8"), plot.read_bytes()) == (page, before)
