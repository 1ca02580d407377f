"""accelerate's trackers get what a run measures; one that fails does not end the run."""

import warnings
from typing import ClassVar

import numpy as np
import pytest
from accelerate import PartialState, tracking
from PIL import Image

from hnkernels.training.config import TrainingConfig
from hnkernels.training.progress.reporter import RunReporter
from hnkernels.training.progress.trackers import Trackers, check_trackers

SETTINGS = {"learning_rate": 1e-4, "prompts": ["ä cat", "b"], "resume": None, "progress": True, "name": "style"}


class Fake(tracking.GeneralTracker):
    """A tracker that remembers what it was given, and fails when it is told to."""

    name, requires_logging_directory, tracker = "wandb", False, None
    main_process_only = False
    made: ClassVar = []
    fails = ()

    def __init__(self, run_name, *args, **options):
        super().__init__()
        self.calls = [("made", run_name, *args)]
        self.made.append(self)
        self._do("init")

    def start(self):
        self._do("start")

    def store_init_configuration(self, values):
        self._do("settings", values)

    def log(self, values, step=None):
        self._do("log", values, step)

    def finish(self):
        self._do("finish")

    def _do(self, *call):
        tracking.logger.debug("as accelerate's own do")
        self.calls.append(call)
        if call[0] in self.fails:
            raise ConnectionError("no route to host")


class WithImages(Fake):
    def log_images(self, values, step=None):
        self._do("images", values, step)


@pytest.fixture
def install(monkeypatch):
    """Installs a fake under the names of trackers; accelerate knows nothing of the process yet."""
    PartialState._reset_state()

    def install(kind, *names, **attributes):
        kind = type(kind.__name__, (kind,), {"made": [], **attributes})
        installed = [tracking.LoggerType(name) for name in names]
        monkeypatch.setattr(tracking, "_available_trackers", installed)
        for name in names:
            monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, kind)
        return kind

    return install


def events_in(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_tensorboard_gets_numbers_pictures_and_settings(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    folder = tmp_path / "run"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8))
    with Trackers(["tensorboard"], folder, SETTINGS) as trackers:
        for step in (1, 2):
            trackers.log({"step": step, "loss": 0.5 / step, "validation/loss": 0.25}, step)
        trackers.log_image("preview", picture, 2)
    events = events_in(folder / "trackers" / "run")
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert "step" not in events.Tags()["scalars"]
    (image,) = events.Images("preview")
    assert (image.step, image.width, image.height) == (2, 10, 6)
    assert "style" in next(folder.rglob("hparams.yml")).read_text()


def test_a_resumed_run_hides_what_was_logged_after_its_step(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    for first, steps, loss in ((0, (1, 2, 3, 4), 1.0), (2, (3,), 0.5)):
        with Trackers(["tensorboard"], tmp_path / "run", {}, first_step=first) as trackers:
            for step in steps:
                trackers.log({"loss": loss}, step)
    events = events_in(tmp_path / "run" / "trackers" / "run")
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_trackers_without_files_get_a_project_and_plain_settings(tmp_path, install):
    kind = install(Fake, "wandb")
    with Trackers(["wandb", "wandb"], tmp_path / "run", SETTINGS) as trackers:
        trackers.log({"step": 3, "loss": 1}, 3)
        trackers.log_image("preview", Image.new("L", (2, 2)), 3)
    (made,) = kind.made
    assert made.calls == [
        ("made", "hnkernels"),
        ("init",),
        ("start",),
        ("settings", {**SETTINGS, "prompts": '["ä cat", "b"]'}),
        ("log", {"loss": 1.0}, 3),
        ("finish",),
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "several"), [("wandb", True), ("swanlab", True), ("aim", False), ("clearml", False)])
def test_pictures_go_where_they_are_taken(tmp_path, install, name, several):
    if name not in tracking.LOGGER_TYPE_TO_CLASS:
        pytest.skip(f"this version of accelerate does not know {name}")
    kind = install(WithImages, name)
    picture = Image.new("RGB", (4, 3), "red")
    with Trackers([name], tmp_path, {}) as trackers:
        trackers.log_image("preview", picture, 7)
    (given,) = [call for call in kind.made[0].calls if call[0] == "images"]
    assert given[2] == 7
    value = given[1]["preview"]
    assert (value.shape == (1, 3, 4, 3)) if several else (value is picture)


@pytest.mark.parametrize("moment", ["log", "images", "finish"])
def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(tmp_path, install, moment):
    kind = install(WithImages, "wandb", "aim")
    with Trackers(["wandb", "aim"], tmp_path, {}) as trackers:
        first, second = kind.made
        first.fails = (moment,)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in (1, 2):
                trackers.log({"loss": 1.0}, step)
                trackers.log_image("preview", Image.new("RGB", (1, 1)), step)
            trackers.close()
    (warning,) = caught
    assert str(warning.message) == "the tracker 'wandb' failed and is left out from here on: no route to host"
    assert [call[0] for call in second.calls].count("log") == 2
    assert second.calls[-1] == ("finish",)
    assert [call[0] for call in first.calls].count(moment) == 1


@pytest.mark.parametrize("moment", ["init", "start", "settings"])
def test_a_tracker_that_cannot_be_started_is_refused_and_the_others_are_closed(tmp_path, install, moment):
    kind = install(Fake, "wandb", "aim")
    failing = type("Failing", (Fake,), {"made": [], "fails": (moment,)})
    tracking.LOGGER_TYPE_TO_CLASS["aim"] = failing
    with pytest.raises(ValueError, match="the tracker 'aim' cannot be started: no route to host; log in"):
        Trackers(["wandb", "aim"], tmp_path, {})
    assert kind.made[0].calls[-1] == ("finish",)


def test_a_run_whose_tracker_cannot_be_started_leaves_no_log(tmp_path, install):
    install(Fake, "wandb", fails=("start",))
    with pytest.raises(ValueError, match="cannot be started"):
        RunReporter(tmp_path, TrainingConfig(trackers=["wandb"]), "style", 0, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "unknown 'tensorbord'; did you mean 'tensorboard'?"),
        ("xyzzy", r"unknown 'xyzzy'; accepted are aim, clearml, comet_ml, .*wandb"),
        ("", "unknown ''; accepted are"),
        ("wandb", "the tracker 'wandb' is not installed; install it with: pip install wandb"),
        ("comet_ml", "install it with: pip install comet-ml"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_made(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.TENSORBOARD])
    with pytest.raises(ValueError, match=message):
        check_trackers([name])
    with pytest.raises(ValueError, match=message):
        Trackers(["tensorboard", name], tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_no_trackers_do_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Trackers((), tmp_path, SETTINGS) as trackers:
            trackers.log({"loss": 1.0}, 1)
            trackers.log_image("preview", Image.new("RGB", (1, 1)), 1)
    assert not list(tmp_path.iterdir())
