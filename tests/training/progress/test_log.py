"""The CSV files of a run: whole rows only, none after the step that a run resumes from, read back as columns."""

import math
import os
import warnings

import pytest

import hnkernels as hn
from hnkernels.training.progress.history import History, write_run
from hnkernels.training.progress.log import COLUMNS, VALIDATION_COLUMNS, CsvLog, rows_of, table_of
from hnkernels.training.progress.measured import Measured
from tests.faults import ERRORS, Killed, every_fault


def validations(path, keep_until=0):
    return CsvLog(path, keep_until, VALIDATION_COLUMNS, every_step=False)


def measured(loss):
    return Measured([[loss, loss], [loss + 0.1, loss]], [[1.0, 1.0], [1.0, 1.0]])


def test_validations_are_logged_and_read_back(tmp_path):
    path = tmp_path / "run" / "validation.csv"
    with validations(path) as log:
        log.write(measured(0.9).row(0))
        log.write(measured(0.8).row(100, training_loss=0.7))
    assert path.read_text().splitlines()[0] == (
        "step,loss,standard_error,base_loss,difference,difference_standard_error,training_loss"
    )
    table = table_of(path, VALIDATION_COLUMNS)
    assert table["step"] == [0, 100]
    assert table["loss"] == pytest.approx([0.925, 0.825])
    assert table["difference"] == pytest.approx([-0.075, -0.175])
    assert math.isnan(table["training_loss"][0])
    assert table["training_loss"][1] == 0.7


@pytest.mark.parametrize(("keep_until", "kept"), [(0, []), (99, [0]), (100, [0, 100]), (250, [0, 100, 200])])
def test_rows_after_the_step_that_a_run_resumes_from_are_dropped(tmp_path, keep_until, kept):
    path = tmp_path / "validation.csv"
    with validations(path) as log:
        for step in (0, 100, 200, 300):
            log.write(measured(0.9).row(step))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with validations(path, keep_until) as log:
            log.write(measured(0.5).row(400))
    assert table_of(path, VALIDATION_COLUMNS)["step"] == [*kept, 400]


@pytest.mark.parametrize(
    "tail", ["300,0.5", "300,0.5,0.1,1,1\r\n", "300,a,0,0,0,0,0\r\n", "\0\0\0", "-1,0,0,0,0,0,0\r\n"]
)
def test_half_rows_are_dropped(tmp_path, tail):
    path = tmp_path / "validation.csv"
    with validations(path) as log:
        log.write(measured(0.9).row(100))
    with path.open("a", newline="") as file:
        file.write(tail)
    with validations(path, keep_until=500):
        pass
    assert [row[0] for row in rows_of(path, VALIDATION_COLUMNS)] == ["100"]
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("error", [*ERRORS, Killed()], ids=["full", "denied", "killed"])
def test_a_fault_while_the_validations_are_taken_up_leaves_them(tmp_path, monkeypatch, error):
    for number, fault in enumerate(every_fault(monkeypatch, error)):
        path = tmp_path / str(number) / "validation.csv"
        with validations(path) as log:
            log.write(measured(0.9).row(100))
        try:
            with fault, validations(path, keep_until=100):
                pass
        except (hn.CheckpointError, OSError, Killed):
            pass
        assert os.listdir(path.parent) == ["validation.csv"]
        assert len(rows_of(path, VALIDATION_COLUMNS)) == 1


def test_a_step_without_a_number_is_nan(tmp_path):
    with CsvLog(tmp_path / "log.csv", 0) as log:
        log.write({"step": 1, "loss": 0.5})
    assert rows_of(tmp_path / "log.csv") == [["1", "nan", "0.5", *["nan"] * 5]]


def test_the_first_line_names_the_columns_where_nobody_else_does(tmp_path):
    path = tmp_path / "health.csv"
    with CsvLog(path, 0, ("step", "768.k.change"), every_step=False) as log:
        log.write({"step": 10, "768.k.change": 0.25})
    assert table_of(path) == {"step": [10], "768.k.change": [0.25]}


@pytest.mark.parametrize("content", [None, b"", b"step,a\r\n", b"\xff\xff\r\n1,2\r\n", b"x,y\r\n1,2\r\n"])
def test_a_file_without_rows_or_names_is_an_empty_table(tmp_path, content):
    if content is not None:
        (tmp_path / "health.csv").write_bytes(content)
    assert table_of(tmp_path / "health.csv") == {}


def test_a_run_is_read_back_from_its_folder(tmp_path):
    with CsvLog(tmp_path / "log.csv", 0) as log:
        log.write({"step": 1, "loss": 0.5})
    with validations(tmp_path / "validation.csv") as log:
        log.write(measured(0.9).row(1))
    with CsvLog(tmp_path / "health.csv", 0, ("step", "768.k.change"), every_step=False) as log:
        log.write({"step": 1, "768.k.change": 0.25})
    write_run(tmp_path, "style", {"learning_rate": 1e-4, "path": tmp_path, "prompts": ("a", "b")}, 10, "schedule")
    history = History.read(tmp_path)
    assert tuple(history.log) == COLUMNS
    assert history.validation["step"] == [1]
    assert history.health["768.k.change"] == [0.25]
    assert (history.name, history.end, history.stopped) == ("style", 10, "schedule")
    assert history.settings == {"learning_rate": 1e-4, "path": str(tmp_path), "prompts": ["a", "b"]}


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"\xff", b'{"settings": 1, "end": "9", "name": 3, "stopped": []}', b"[" * 10**5]
)
def test_an_empty_folder_and_a_damaged_run_are_a_run_without_numbers(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    assert History.read(tmp_path) == History()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(hn.CheckpointError, match=r"run\.json: lies in a folder that does not exist"):
        write_run(tmp_path / "no", "style", {})
