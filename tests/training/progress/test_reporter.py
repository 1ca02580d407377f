"""What a run tells of itself, by whole runs."""

import json

import pytest

import hnkernels as hn
from tests.training.nets import make_net, make_rows, make_unet


def train(out, **config):
    settings = {"output_dir": str(out), "learning_rate": 1e-2, "max_steps": 4, "progress": False, **config}
    hn.HypernetworkTrainer(make_net(), make_unet(), settings, make_rows(7)).train()


def test_a_run_leaves_a_report_of_all_that_it_measured(tmp_path, with_report):
    train(tmp_path, validation_split=3, validate_every=2, max_steps=6, learning_rate="1e-2:4")
    page = (tmp_path / "report.html").read_text()
    assert "its learning-rate schedule ends" in page
    assert "<svg" in page
    assert json.loads((tmp_path / "run.json").read_text())["stopped"] == "schedule"
    rows = (tmp_path / "validation.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "0", "2", "4"]
    first = rows[1].split(",")
    assert float(first[1]) == pytest.approx(float(first[3]))  # the network starts as the base model
    assert float(first[4]) == pytest.approx(0, abs=1e-6)
    assert [row.split(",")[0] for row in (tmp_path / "health.csv").read_text().splitlines()] == ["step", "0", "2", "4"]


def test_a_run_tells_what_is_wrong_on_stderr(tmp_path, capsys):
    train(tmp_path, progress=True, validation_split=1)
    err = capsys.readouterr().err
    assert "Whether the network is better than the base model is open" in err
    train(tmp_path / "quiet", validation_split=1)
    assert capsys.readouterr().err == ""


def test_a_run_tells_the_trackers(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, trackers="tensorboard", validation_split=2)
    scalars = {}
    for folder in {path.parent for path in tmp_path.rglob("events.out.*")}:
        events = EventAccumulator(str(folder)).Reload()
        scalars |= {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars["loss"] == [1, 2, 3, 4]
    assert scalars["validation/loss"] == [0, 4]


def test_without_matplotlib_a_run_goes_without_the_report(tmp_path, monkeypatch):
    def missing(folder):
        raise ImportError("no module named matplotlib")

    monkeypatch.setattr("hnkernels.training.progress.reporter.write_report", missing)
    train(tmp_path)
    assert (tmp_path / "hypernetwork.pt").exists()
