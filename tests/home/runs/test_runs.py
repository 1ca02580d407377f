"""Runs are processes of their own, one after the other; their folders say what became of them."""

import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from PIL import Image

from hnkernels.assets import TINY_SD
from hnkernels.home.runs.process import Phase, RunProcess
from hnkernels.home.runs.request import RunRequest
from hnkernels.home.runs.run import ALIVE, DIED, FINISHED, QUEUED, STOPPED, TRAINING
from hnkernels.home.runs.runs import Runs
from hnkernels.home.runs.waiting import TURN
from hnkernels.training.persistence.run_folder import RunFolder
from hnkernels.training.progress.history import write_run
from hnkernels.training.progress.log import COLUMNS

HEAD = ",".join(COLUMNS) + "\n"


@pytest.fixture
def runs(home):
    """No run: what a test leaves running is ended after it."""
    made = Runs(home)
    yield made
    for run in made.all():
        process = run.process.running() if run.process else None
        if process is not None and process.pid != os.getpid():
            process.kill()


@pytest.fixture
def turn(runs):
    """Somebody has the turn, so that all other runs wait."""
    descriptor = os.open(runs.path / TURN, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield descriptor
    os.close(descriptor)


NOWHERE = RunRequest(model="/nowhere", data="/nowhere", name="style")


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def write_request(runs, name, **changes):
    folder = runs.path / name
    folder.mkdir()
    dataclasses.replace(NOWHERE, **changes).write(folder)
    return folder


def test_a_request_comes_back_as_it_was(tmp_path):
    request = RunRequest("m", "d", "n", "weights", {"batch_size": 2}, {"init": "normal"}, "bf16", 7, True)
    request.write(tmp_path)
    assert RunRequest.read(tmp_path) == request
    command = request.command(tmp_path)
    assert command[:4] == [sys.executable, "-m", "hnkernels", "train"]
    assert command[-3:] == ["--", "m", "d"]
    assert "--resume" in command
    assert "--recipe=none" in command  # the config says everything


@pytest.mark.parametrize("content", ["", "[", "[]", "{}", '{"model": "m"}', '{"unknown": 1}', "[" * 100_000])
def test_a_damaged_request_is_none(tmp_path, content):
    (tmp_path / "request.json").write_text(content)
    assert RunRequest.read(tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": "x", "started": 0, "phase": "turn"}', '{"pid": 1e999}'])
def test_a_damaged_process_is_none(tmp_path, content):
    (tmp_path / "process.json").write_text(content)
    assert RunProcess.read(tmp_path) is None


def test_another_process_of_the_same_id_is_not_the_run():
    own = RunProcess.current(Phase.TURN)
    assert own.running() == psutil.Process()
    assert dataclasses.replace(own, started=own.started - 10).running() is None
    assert dataclasses.replace(own, pid=2**40).running() is None
    assert own.memory() > 0


def test_runs_wait_for_their_turn_in_their_order(runs, turn):
    first, second, third = (runs.start(NOWHERE) for _ in range(3))
    assert [run.name for run in (first, second, third)] == ["style", "style-2", "style-3"]
    assert [runs[run.name].state for run in (first, second, third)] == [QUEUED] * 3
    assert [runs.ahead_of(run) for run in (first, second, third)] == [0, 1, 2]
    assert runs.stop("style-2").name == "style-2"
    until(lambda: runs["style-2"].state == STOPPED)
    assert runs["style-2"].sentence() == "Stopped, at step 0; resume begins again."
    fcntl.flock(turn, fcntl.LOCK_UN)
    until(lambda: runs["style"].state not in ALIVE)
    until(lambda: runs["style-3"].state not in ALIVE)
    assert runs["style"].changed <= runs["style-3"].changed


def test_a_run_that_fails_says_why_with_its_last_words(runs):
    runs.start(NOWHERE)
    until(lambda: runs["style"].state not in ALIVE)
    run = runs["style"]
    assert run.state == DIED
    assert "Its last words: error: /nowhere is not a diffusers pipeline" in run.sentence()
    assert run.resumable
    assert not run.has_checkpoint


def test_training_is_stopped_resumed_and_finished(runs):
    """Also where whoever starts it ignores Ctrl-C, as shells do for what they start in the background."""
    data = runs.home.data / "digits"
    data.mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(data / f"digit {number}.png")
    training = {"learning_rate": 1e-3, "batch_size": 2, "max_steps": 60, "checkpoint_every": 0}
    request = RunRequest(str(TINY_SD), str(data), "style", training=training)
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        runs.start(request)
    finally:
        signal.signal(signal.SIGINT, previous)
    until(lambda: runs["style"].state == TRAINING)
    runs.stop("style")
    until(lambda: runs["style"].state not in ALIVE)
    assert runs["style"].state == STOPPED
    assert runs["style"].has_checkpoint
    with pytest.raises(ValueError, match="has ended already"):
        runs.stop("style")
    runs.resume("style")
    until(lambda: runs["style"].state not in ALIVE)
    run = runs["style"]
    assert run.state == FINISHED, run.last_lines()
    assert run.step == run.end == training["max_steps"]
    assert (run.folder / "style.safetensors").is_file()
    with pytest.raises(ValueError, match="cannot be resumed: Finished, at step"):
        runs.resume("style")


def test_who_starts_a_run_may_end(runs, turn):
    code = (
        "import sys; from hnkernels.home.folder import Home; from hnkernels.home.runs.runs import Runs; "
        "from hnkernels.home.runs.request import RunRequest; "
        "Runs(Home(sys.argv[1])).start(RunRequest('/nowhere', '/nowhere', 'style'))"
    )
    subprocess.run([sys.executable, "-c", code, str(runs.home.path)], check=True)
    assert runs["style"].state == QUEUED
    assert runs["style"].process.running().pid == runs["style"].process.pid


def test_a_killed_run_has_died(runs, turn):
    run = runs.start(NOWHERE)
    run.process.running().kill()
    until(lambda: runs["style"].state not in ALIVE)
    assert runs["style"].state == DIED
    assert runs["style"].sentence() == "Died, at step 0; resume begins again. It said nothing."


def test_a_deleted_run_comes_back(runs, turn):
    runs.start(NOWHERE)
    with pytest.raises(ValueError, match="style is queued; stop it first"):
        runs.delete("style")
    runs.stop("style")
    until(lambda: runs["style"].state == STOPPED)
    deleted = runs.delete("style")
    assert runs.all() == []
    runs.bin.restore(deleted.key)
    assert [run.name for run in runs.all()] == ["style"]


def test_runs_of_the_command_line_are_there_too(runs):
    folder = runs.path / "own"
    with RunFolder(folder).locked():
        write_run(folder, "own", {}, end=10)
        (folder / "log.csv").write_text(
            "step,epoch,loss,mean_loss,learning_rate,grad_norm,iterations_per_second,memory_gb\n"
        )
        assert runs["own"].state == TRAINING
        with pytest.raises(ValueError, match="was started elsewhere; stop it there"):
            runs.stop("own")
    assert runs["own"].state == DIED
    write_run(folder, "own", {}, end=10, stopped="interrupted")
    assert runs["own"].state == STOPPED
    with pytest.raises(ValueError, match="was not started here; resume it with: hnkernels train"):
        runs.resume("own")
    write_run(folder, "own", {}, end=10, stopped="finished")
    assert runs["own"].state == FINISHED


def test_time_left_is_that_of_the_pace(runs):
    folder = write_request(runs, "style")
    RunProcess.current(Phase.TURN).write(folder)
    write_run(folder, "style", {}, end=100)
    head = "step,epoch,loss,mean_loss,learning_rate,grad_norm,iterations_per_second,memory_gb\n"
    (folder / "log.csv").write_text(
        head + "".join(f"{n},0,1,1,1,1,{pace},1\n" for n, pace in [(1, 2), (2, 2), (3, 50)])
    )
    run = runs["style"]
    assert run.state == TRAINING
    assert run.seconds_left == (100 - 3) / 2
    assert run.sentence() == "Trains: step 3 of 100."


@pytest.mark.parametrize("name", ["missing", "../home", "", None, ".turn.lock"])
def test_only_runs_can_be_named(runs, name):
    (runs.path / "not a run").mkdir()
    for what in (runs.stop, runs.resume, runs.delete, runs.__getitem__):
        with pytest.raises(ValueError, match=r"there is no run|is not a name"):
            what(name)
    with pytest.raises(ValueError, match="there is no run"):
        runs["not a run"]


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".x"])
def test_a_run_has_a_name(runs, name):
    with pytest.raises(ValueError, match="is not a name"):
        runs.start(dataclasses.replace(NOWHERE, name=name))
    assert runs.all() == []


@pytest.mark.parametrize("model", ["", "a\0b"])
def test_what_no_command_can_be_told_leaves_nothing(runs, model):
    with pytest.raises(ValueError, match="style cannot be started"):
        runs.start(dataclasses.replace(NOWHERE, model=model))
    assert runs.all() == []


def test_a_full_disk_leaves_nothing(runs, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ValueError, match="style cannot be started: No space left on device"):
        runs.start(NOWHERE)
    assert runs.all() == []


def test_a_folder_that_is_gone_is_empty_and_comes_back_with_the_next_run(runs, turn):
    os.rename(runs.home.path, runs.home.path.with_name("gone"))
    assert runs.all() == []
    with pytest.raises(ValueError, match="there is no run"):
        runs.stop("style")
    assert runs.start(NOWHERE).name == "style"


def test_a_run_that_waits_holds_no_model_and_no_library_for_one():
    code = "import sys, hnkernels.home.runs.waiting; print(sorted({'torch', 'numpy', 'triton'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
