"""Curves are thinned without losing a peak, and logs are read once as they grow."""

import numpy as np
import pytest

from hnkernels.home.runs import curves
from hnkernels.home.runs.curves import LogReader, thinned
from hnkernels.home.runs.figures import RunFigures
from hnkernels.training.progress.log import COLUMNS, CsvLog


def rows(first, last, loss=0.5):
    return "".join(f"{n},0,{loss},0.4,0.001,1,5,1\n" for n in range(first, last + 1))


HEAD = ",".join(COLUMNS) + "\n"


def test_a_short_curve_is_whole():
    curve = thinned([1, 2, 3], [3.0, 1.0, 2.0])
    assert curve.steps.tolist() == [1, 2, 3]
    assert curve.mean.tolist() == curve.low.tolist() == curve.high.tolist() == [3, 1, 2]


def test_extremes_are_kept():
    values = np.ones(100_003)
    values[54_321], values[7] = 9.0, -9.0
    curve = thinned(np.arange(100_003), values, points=100)
    assert len(curve.steps) == 100
    assert curve.high.max() == 9
    assert curve.low.min() == -9
    assert curve.steps[-1] == 100_002
    np.testing.assert_allclose(curve.mean.mean(), values.mean(), atol=1e-6)


def test_what_is_not_a_number_counts_for_nothing():
    curve = thinned([1, 2, 3, 4], [np.nan, 1.0, np.inf, 2.0])
    assert curve.steps.tolist() == [2, 4]
    assert len(thinned([], []).steps) == 0


def test_every_row_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    parsed, lengths = curves._parsed, []

    def counting(text, **kwargs):
        lengths.append(text.count(b"\n"))
        return parsed(text, **kwargs)

    monkeypatch.setattr(curves, "_parsed", counting)
    reader = LogReader(path)
    assert reader.rows().shape == (0, len(COLUMNS))
    path.write_text(HEAD + rows(1, 3) + "4,0,0.5")
    assert reader.rows()[:, 0].tolist() == [1, 2, 3]
    with path.open("a") as file:
        file.write(",0.4,0.001,1,5,1\n" + rows(5, 6))
    assert reader.rows()[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    reader.rows()
    assert lengths == [4, 3]


def test_a_log_that_was_cut_is_read_again(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(HEAD + rows(1, 9))
    reader = LogReader(path)
    assert len(reader.rows()) == 9
    with CsvLog(path, keep_until=4):
        assert reader.rows()[:, 0].tolist() == [1, 2, 3, 4]
    path.unlink()
    assert len(reader.rows()) == 0


def test_a_damaged_row_is_left_out(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(HEAD + rows(1, 2) + "x,y\n" + rows(4, 4))
    assert LogReader(path).rows()[:, 0].tolist() == [1, 2, 4]


def test_figures_of_a_folder_with_nothing_in_it(tmp_path):
    figures = RunFigures(tmp_path)
    assert len(figures.of_steps("loss").steps) == 0
    assert len(figures.of_validations("loss").steps) == 0
    assert figures.changes() == {}
    before = figures.version()
    (tmp_path / "log.csv").write_text(HEAD + rows(1, 2))
    assert figures.version() != before
    assert figures.of_steps("mean_loss").mean.tolist() == [0.4, 0.4]


@pytest.mark.parametrize("count", [1, 399, 400, 401, 1000])
def test_no_more_points_than_asked_for(count):
    assert len(thinned(range(count), [0.0] * count).steps) == min(count, 400)
