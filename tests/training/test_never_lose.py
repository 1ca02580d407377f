"""Whatever happens to a run or its disk: the newest checkpoint is whole, and going on gives the run undisturbed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import hnkernels as hn
from tests.faults import ERRORS, Fault, Killed
from tests.training.nets import make_net, make_rows, make_unet

ROOT = Path(__file__).parents[2]
SETTINGS = {"batch_size": 2, "max_steps": 4, "checkpoint_every": 2, "validation_split": 1, "validate_every": 2}


def trainer(out, callback=None, **config):
    config = {"output_dir": str(out), "progress": False, "learning_rate": 1e-2, **SETTINGS, **config}
    return hn.HypernetworkTrainer(make_net(), make_unet(), config, make_rows(7), callback)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    job = trainer(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:  # as every test has it
        patch.setattr("hnkernels.ops.onednn.LEAST_ELEMENTS", 0)
        torch.set_num_threads(1)
        job.train()
    return job


def same_files(one, two):
    names = (
        "hypernetwork.pt",
        "hypernetwork.safetensors",
        "hypernetwork-best.safetensors",
        "validation.csv",
        "health.csv",
    )
    return {name for name in names if (one / name).read_bytes() != (two / name).read_bytes()}


def goes_on(out, whole):
    """Continues a run, or starts again where it says so, and compares it with the undisturbed one."""
    job, resume = trainer(out), any((out / "checkpoints").glob("step-*"))
    if not resume and (out / "log.csv").exists() and len((out / "log.csv").read_text().splitlines()) > 1:
        with pytest.raises(ValueError, match="ended before its first checkpoint; name another output_dir, or remove"):
            job.train()
        return
    job.train(resume=resume)
    assert all(torch.equal(a, b) for a, b in zip(job.net.parameters(), whole.net.parameters(), strict=True))
    assert not same_files(out, Path(whole.config.output_dir))
    assert not [path for path in out.rglob(".*") if path.name.endswith((".tmp", ".old"))]


@pytest.mark.parametrize(
    ("error", "dead"), [(ERRORS[0], False), (ERRORS[1], False), (Killed(), True)], ids=["full", "denied", "killed"]
)
def test_a_fault_at_any_write_of_a_run_loses_no_checkpoint(tmp_path, monkeypatch, whole, error, dead):
    for number in range(1, 200, 23):  # at every one it would take minutes
        out, fault = tmp_path / str(number), Fault(monkeypatch, number, error, dead=dead)
        try:
            with fault:
                trainer(out).train()
        except (hn.CheckpointError, ValueError, Killed):
            pass
        if fault.count < number:
            break
        goes_on(out, whole)
    assert number > 60  # as often does a run write


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path):
    settings = {"batch_size": 2, "max_steps": 500, "checkpoint_every": 1}
    command = [sys.executable, "-m", "tests.training.processes_job", str(tmp_path / "run"), json.dumps(settings)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "run" / "checkpoints").glob("step-00000[3-9]")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    config = {"progress": False, "learning_rate": 1e-2, "batch_size": 2}
    kept = max(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    nets = []
    for out, resume in ((tmp_path / "run", True), (tmp_path / "whole", False)):
        nets.append(make_net())
        given = {**config, "output_dir": str(out), "max_steps": kept + 2}
        hn.HypernetworkTrainer(nets[-1], make_unet(), given, make_rows(7)).train(resume=resume)
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True))


def test_a_folder_that_vanishes_is_made_again_for_what_comes(tmp_path, whole):
    job = trainer(tmp_path / "run", lambda step, metrics: step == 3 and shutil.rmtree(tmp_path / "run"))
    job.train()
    assert all(torch.equal(a, b) for a, b in zip(job.net.parameters(), whole.net.parameters(), strict=True))
    assert {"hypernetwork.pt", "checkpoints"} <= set(os.listdir(tmp_path / "run"))


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_stops_at_once_and_the_last_checkpoint_is_whole(tmp_path, whole):
    def twice(step, metrics):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", twice).train()
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-000002"]
    goes_on(tmp_path / "run", whole)


def test_a_clock_that_jumps_back_changes_nothing(tmp_path, whole, monkeypatch):
    times = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(times)))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    job = trainer(tmp_path / "run")
    assert job.train().step == 4
    assert all(torch.equal(a, b) for a, b in zip(job.net.parameters(), whole.net.parameters(), strict=True))
