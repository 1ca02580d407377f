"""The questions can be run as they stand."""

import pytest

from hnkernels.network.mlp import MLPConfig
from hnkernels.study.protocol import Protocol
from hnkernels.study.questions import FULL, QUESTIONS, questions_named
from hnkernels.training import TrainingConfig


def test_every_cell_has_settings_that_are_accepted_and_a_name_of_its_own():
    known = {}
    for question in QUESTIONS:
        for cell in question.cells:
            settings = cell.settings(Protocol())
            TrainingConfig.of(settings["training"])
            if cell.kind == "context":
                MLPConfig(**settings["network"])
            assert known.setdefault(cell.name, settings) == settings
        for entry in question.entries:
            assert entry.strength in {FULL, *entry.cell.strengths}
        labels = [entry.label for entry in question.entries]
        assert len(set(labels)) == len(labels) > 1
    assert len({question.name for question in QUESTIONS}) == len(QUESTIONS)


def test_a_cell_that_changes_something_has_other_settings_than_its_baseline():
    for question in QUESTIONS:
        baseline = question.baseline.cell.settings(Protocol())
        for cell in question.cells[1:]:
            settings = cell.settings(Protocol())
            names = {key for key in settings if settings[key] != baseline[key]} - {"name", "strengths"}
            assert names, cell.name


def test_questions_are_chosen_by_name_in_the_order_of_the_study():
    assert questions_named([]) == list(QUESTIONS)
    assert [question.name for question in questions_named(["size", "rate"])] == ["rate", "size"]


@pytest.mark.parametrize(
    ("name", "message"), [("rates", "did you mean 'rate'"), ("", "accepted are rate, recipes, layers")]
)
def test_an_unknown_question_names_the_nearest_or_all(name, message):
    with pytest.raises(ValueError, match=message):
        questions_named([name])
