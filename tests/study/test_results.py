"""What is kept of finished runs."""

import dataclasses

import pytest

from hnkernels.study.protocol import Cell
from hnkernels.study.results import Result, Results
from tests.study.cases import BASE, PROTOCOL

RESULT = Result(10, 2, 1.5, {"1": {"style": 0.5, "loss": 0.1}})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study" / "results.jsonl"


def test_a_result_is_there_again_when_the_file_is_read(path):
    results = Results(path, PROTOCOL)
    assert results.of(BASE, 0) is None
    results.add_judges({"style": 0.9, "content": 0.8})
    results.add(BASE, 0, RESULT)
    results.add(BASE, 1, RESULT._replace(scores={}, diverged="it did"))
    for found in (results, Results(path, PROTOCOL)):
        assert found.of(BASE, 0) == RESULT
        assert found.of(BASE, 1).diverged == "it did"
        assert found.of(BASE, 2) is None
        assert found.of(Cell("other"), 0) is None
        assert found.judges == {"style": 0.9, "content": 0.8}


def test_a_line_that_was_not_written_to_its_end_loses_itself_alone(path):
    Results(path, PROTOCOL).add(BASE, 0, RESULT)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    results = Results(path, PROTOCOL)
    assert results.of(BASE, 0) == RESULT
    results.add(BASE, 1, RESULT)
    assert path.read_bytes().startswith(whole)
    assert Results(path, PROTOCOL).of(BASE, 1) == RESULT


def test_results_with_other_settings_are_of_another_study(path):
    Results(path, PROTOCOL).add(BASE, 0, RESULT)
    other = Results(path, dataclasses.replace(PROTOCOL, drawn=20))
    with pytest.raises(ValueError, match=r"holds the results of another study: 'base' was run there with other"):
        other.of(BASE, 0)


@pytest.mark.parametrize("line", ["no JSON", "[1]", "{}", '{"cell": "base"}'])
def test_a_file_of_something_else_is_refused(path, line):
    path.parent.mkdir()
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"line 1 of .* is not the result of a run; name another folder"):
        Results(path, PROTOCOL)
