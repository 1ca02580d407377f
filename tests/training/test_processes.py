"""Two real processes on the CPU train as one with twice the batch does."""

import csv
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hnkernels as hn
from tests.training.nets import make_net, make_rows, make_unet

ROOT = Path(__file__).parents[2]

# The last bias of K's MLP shifts all keys alike, which softmax does not see: its gradient is rounding alone, and AdamW
# makes steps of full size of that. With this epsilon it does not.
STEADY = {"optimizer_args": {"eps": 1e-4}}


MORE = {"gradient_accumulation_steps": 2, "validation_split": 2, "validate_every": 3, "ema_decay": 0.9}
RUNS = {
    "plain": {"batch_size": 1, "max_epochs": 3, **STEADY},
    "more": {"batch_size": 1, "max_epochs": 3, **STEADY, **MORE},
    "stopped": {"batch_size": 1, "max_epochs": 3, "stop": [1, 4], **STEADY},
    "pictures": {"pictures": True, "max_steps": 2},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folders of these runs, made by two processes under ``accelerate launch``, and what was printed.

    All in one launch: to start it takes longer than any of them.
    """
    folder = tmp_path_factory.mktemp("two")
    jobs = [word for name, settings in RUNS.items() for word in (str(folder / name), json.dumps(settings))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # accelerate finds one by itself from 1.1 on
    command = [
        # On a machine without a GPU its way for several of them starts processes that talk by gloo.
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"),
        *("--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", str(port), "-m", "tests.training.processes_job", *jobs),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def alone(folder, **settings):
    net = make_net()
    config = {"output_dir": str(folder), "learning_rate": 1e-2, "progress": False, **settings}
    hn.HypernetworkTrainer(net, make_unet(), config, make_rows(7)).train()
    return net


def compare(one, two):
    """The log and the network of two folders."""
    logs = []
    for folder in (one, two):
        with (folder / "log.csv").open() as file:
            logs.append([[float(row[key]) for key in ("step", "loss", "grad_norm")] for row in csv.DictReader(file)])
    assert len(logs[0]) == len(logs[1])
    torch.testing.assert_close(torch.tensor(logs[0]), torch.tensor(logs[1]), rtol=1e-5, atol=1e-7)
    nets = [hn.load_hypernetwork(folder / "hypernetwork.safetensors") for folder in (one, two)]
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm() + 1e-6  # of that bias of K rounding is all there is


@pytest.mark.parametrize("name", ["plain", "more"])
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path, two, name):
    folder = two[0] / name
    alone(tmp_path, **{**RUNS[name], "batch_size": 2})
    compare(tmp_path, folder)
    if name == "more":
        texts = [(path / "validation.csv").read_text().splitlines() for path in (tmp_path, folder)]
        for a, b in zip(*texts, strict=True):
            if a[0].isdigit():
                assert [float(x) for x in a.split(",")] == pytest.approx(
                    [float(x) for x in b.split(",")], rel=1e-4, abs=1e-6
                )


def test_a_run_of_two_processes_stops_for_both_and_goes_on_in_one(tmp_path, two):
    folder, said = two[0] / "stopped", two[1]
    assert sorted(re.findall("stopped: rank . stopped", said)) == [f"stopped: rank {rank} stopped" for rank in (0, 1)]
    (kept,) = (folder / "checkpoints").iterdir()
    assert kept.name == "step-000006"  # asked after step 4, heard in step 5, stopped after the next one
    net = make_net()
    config = {"output_dir": str(folder), "learning_rate": 1e-2, "progress": False, "batch_size": 2}
    hn.HypernetworkTrainer(net, make_unet(), {**config, **STEADY, "max_epochs": 3}, make_rows(7)).train(resume=True)
    alone(tmp_path, batch_size=2, max_epochs=3, **STEADY)
    compare(tmp_path, folder)


def test_every_process_encodes_its_share_of_the_pictures(two):
    assert sorted(re.findall(r"rank . encoded \d+", two[1])) == ["rank 0 encoded 3", "rank 1 encoded 3"]


def test_more_processes_than_examples_are_refused(tmp_path):
    class Many:
        num_processes, process_index, device = 8, 0, "cpu"

        def wait_for_everyone(self):
            raise AssertionError("nobody else is there")

    config = {"output_dir": str(tmp_path / "run"), "progress": False}
    trainer = hn.HypernetworkTrainer(make_net(), make_unet(), config, make_rows(7), accelerator=Many())
    with pytest.raises(ValueError, match="8 processes cannot train on 7 examples; start fewer"):
        trainer.train()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_accelerator_that_knows_of_one_process_among_several_is_refused(tmp_path, monkeypatch):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes were started .* knows of one; .*Accelerator\(cpu=True\)"):
        hn.HypernetworkTrainer(make_net(), make_unet(), {"output_dir": str(tmp_path)}, accelerator=accelerator)


def test_a_program_may_bring_its_own_accelerator(tmp_path):
    from accelerate import Accelerator

    net, config = make_net(), {"output_dir": str(tmp_path / "own"), "learning_rate": 1e-2, "progress": False}
    settings = {"batch_size": 2, "max_epochs": 1}
    accelerator = Accelerator(cpu=True)
    trainer = hn.HypernetworkTrainer(net, make_unet(), {**config, **settings}, make_rows(7), accelerator=accelerator)
    trainer.train()
    same = alone(tmp_path / "one", **settings)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))
