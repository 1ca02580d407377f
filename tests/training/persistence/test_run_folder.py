"""The folder of a run: whose it is, and what lies in it whatever happens."""

import csv
import os
import signal
import subprocess
import sys
import tarfile
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import hnkernels as hn
from hnkernels.training import DivergenceError, Example
from hnkernels.training.data.shards import read_shard
from hnkernels.training.persistence.run_folder import LOCK, RunFolder
from hnkernels.training.persistence.run_record import fingerprint
from hnkernels.training.persistence.state import checkpoints_in, latest_checkpoint, read_checkpoint, save_state
from hnkernels.training.progress.log import CsvLog, rows_of
from tests.faults import ERRORS, Killed, every_fault
from tests.training.nets import make_net, make_rows, make_unet


def trainer(out, net=None, rows=None, callback=None, **config):
    settings = {"learning_rate": 1e-2, "batch_size": 2, "max_steps": 4, "checkpoint_every": 2, "progress": False}
    settings |= {"output_dir": str(out), **config}
    return hn.HypernetworkTrainer(net or make_net(), make_unet(), settings, rows or make_rows(), callback)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def steps_logged(out):
    with (out / "log.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_a_second_run_is_refused_while_one_is_writing(tmp_path):
    def start_another(step, metrics):
        for resume in (False, True):
            with pytest.raises(ValueError, match="another run is writing to") as refused:
                trainer(tmp_path).train(resume=resume)
            assert str(tmp_path) in str(refused.value)

    trainer(tmp_path, callback=start_another).train()
    assert steps_logged(tmp_path) == [1, 2, 3, 4]


def test_the_lock_of_a_killed_process_does_not_last(tmp_path):
    code = (
        "import os, sys; from hnkernels.training.persistence.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).locked(): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="another run is writing to"):
            trainer(tmp_path).train()
        other.kill()
    trainer(tmp_path).train()


def test_a_run_tidies_up_after_a_killed_one(tmp_path):
    trainer(tmp_path, max_steps=2).train()
    kept = tmp_path / "checkpoints" / "step-000002"
    kept.rename(tmp_path / "checkpoints" / ".step-000002.0123456789ab.old")
    (tmp_path / "checkpoints" / ".step-000002.0123456789ab.tmp").mkdir()
    (tmp_path / ".hypernetwork.pt.0123456789ab.tmp").touch()
    trainer(tmp_path).train(resume=True)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-000002", "step-000004"]
    assert sorted(os.listdir(tmp_path)) == [
        "checkpoints",
        "health.csv",
        "hypernetwork.pt",
        "hypernetwork.pt.optim",
        "hypernetwork.safetensors",
        "log.csv",
        "run.json",
        LOCK,
        "start.safetensors",
    ]


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(ValueError, match=r"cannot be written to: .*; name another output_dir"):
            trainer(out).train()


def test_a_new_run_overwrites_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"):
        trainer(tmp_path / "log", callback=raising(1)).train()
    with pytest.raises(ValueError, match="holds the log of another run"):
        trainer(tmp_path / "log").train()
    hn.save_hypernetwork(make_net(), (tmp_path / "hypernetwork.pt"))
    before = (tmp_path / "hypernetwork.pt").read_bytes()
    with pytest.raises(ValueError, match=r"holds hypernetwork\.pt, which the run would overwrite"):
        trainer(tmp_path).train()
    assert (tmp_path / "hypernetwork.pt").read_bytes() == before
    trainer(tmp_path / "damaged", max_steps=1).train()
    (tmp_path / "damaged" / "checkpoints" / "step-000001" / "training_state.pt").unlink()
    with pytest.raises(ValueError, match="holds a run already"):
        trainer(tmp_path / "damaged").train()
    checkpoint = tmp_path / "other" / "checkpoints" / "step-000002"
    trainer(tmp_path / "other", max_steps=2).train()
    with pytest.raises(ValueError, match="holds a run already"):
        trainer(tmp_path / "damaged").train(resume=checkpoint)
    assert trainer(tmp_path / "third").train(resume=checkpoint).step == 4


def raising(at):
    def callback(step, metrics):
        if step == at:
            raise RuntimeError("stop")

    return callback


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 1e-3}, r"learning_rate \(0\.01 then, 0\.001 now\)"),
        ({"batch_size": 1}, r"batch_size \(2 then, 1 now\)"),
        ({"seed": 1}, r"seed \(0 then, 1 now\)"),
        ({"target_layers": ["attn1"]}, "target_layers"),
        ({"gradient_clip": None}, r"gradient_clip \(1\.0 then, None now\)"),
        ({"rows": make_rows(6)}, r"data \(5 examples, \w+ then, 6 examples, \w+ now\)"),
        ({"rows": make_rows(5)[::-1]}, "data "),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_resuming_with_changes_names_them_and_wants_leave(tmp_path, changed, message):
    trainer(tmp_path, max_steps=2).train()
    net = make_net()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=message + r".*allow_changes=True \(--allow-changes\)"):
        trainer(tmp_path, net, **changed).train(resume=True)
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    with pytest.warns(UserWarning, match="continues from .* with changes: " + message):
        assert trainer(tmp_path, **changed).train(resume=True, allow_changes=True).step == 4


def test_other_versions_are_changes_too(tmp_path, monkeypatch):
    trainer(tmp_path, max_steps=2).train()
    monkeypatch.setattr("hnkernels.__version__", "9.9")
    with pytest.raises(ValueError, match=r"hnkernels \(.* then, 9\.9 now\)"):
        trainer(tmp_path).train(resume=True)


def test_what_does_not_change_a_step_may_differ(tmp_path):
    trainer(tmp_path, max_steps=2).train()
    other = {"max_steps": 3, "max_epochs": 7, "checkpoint_every": 1, "learning_rate": "1e-2"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trainer(tmp_path, **other, gradient_checkpointing=True).train(resume=True).step == 3


def test_settings_of_any_type_can_be_resumed(tmp_path):
    settings = {"learning_rate": np.float64(1e-2), "weight_decay": np.float32(0.1)}
    trainer(tmp_path, max_steps=2, **settings).train()
    assert trainer(tmp_path, **settings).train(resume=True).step == 4


def test_a_run_is_not_resumed_beyond_its_end(tmp_path):
    trainer(tmp_path, max_steps=3).train()
    with pytest.raises(ValueError, match="has 3 steps done, and the settings end the run at 1; raise max_steps"):
        trainer(tmp_path, max_steps=1).train(resume=True)
    assert trainer(tmp_path, max_steps=3).train(resume=True).step == 3


def test_the_fingerprint_is_of_the_content(tmp_path):
    values = ["a", "b", 1, 1.5, None, ["a", "b"], ["ab"], {"a": 1}, {"b": 1}, torch.zeros(2), torch.zeros(2, 1)]
    values += [torch.zeros(2, dtype=torch.bfloat16), torch.zeros(()), Image.new("RGB", (2, 2)), Image.new("L", (2, 6))]
    for name in "xy":
        Image.new("RGB", (2, 2), (0, 0, ord(name))).save(tmp_path / f"{name}.png")
        values.append(tmp_path / f"{name}.png")
    assert len(set(map(fingerprint, values))) == len(values)
    Image.new("RGB", (2, 2), (0, 0, ord("x"))).save(tmp_path / "z.png")
    assert fingerprint(tmp_path / "z.png") == fingerprint(tmp_path / "x.png")
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="cannot read the image"):
        fingerprint([tmp_path / "none.png"])


def test_the_fingerprint_of_examples_is_of_what_is_trained_on_wherever_it_lies(tmp_path):
    for name in "ab":
        Image.new("RGB", (2, 2), (0, 0, ord(name))).save(tmp_path / f"{name}.png")
    for shard in ("0.tar", "1.tar"):
        with tarfile.open(tmp_path / shard, "w") as tar:
            tar.add(tmp_path / "b.png", "other.png")
            tar.add(tmp_path / "a.png", "a.png")
    inside = [read_shard(tmp_path / shard).pictures[1][0] for shard in ("0.tar", "1.tar")]
    example = Example(tmp_path / "a.png", "x")
    same = [example, replace(example, size=(2, 2)), *(Example(member, "x") for member in inside)]
    others = [replace(example, repeats=2), replace(example, mask=tmp_path / "b.png"), Example(tmp_path / "b.png", "x")]
    assert len(set(map(fingerprint, same))) == 1
    assert len(set(map(fingerprint, [example, *others]))) == 4


def test_a_fingerprint_may_be_taken_without_reading_again(tmp_path):
    assert fingerprint([tmp_path / "none.png"], lambda source: "its hash")


def test_name_step_and_origin_are_restored(tmp_path):
    net = make_net(name="my style")
    net.provenance.sd_checkpoint, net.provenance.sd_checkpoint_name = "81761151", "v1-5"
    net.provenance.optional_info, net.provenance.step = "by hand", 100
    origin = trainer(tmp_path, net, max_steps=2).train() and net.provenance
    other = make_net()
    result = trainer(tmp_path, other).train(resume=True)
    assert [file.name for file in result.files] == ["my_style.safetensors", "my_style.pt"]
    assert (other.provenance.step, origin.step) == (104, 102)
    for name in ("name", "sd_checkpoint", "sd_checkpoint_name", "optional_info"):
        assert getattr(other.provenance, name) == getattr(origin, name)
    assert hn.load_hypernetwork(result.files[0]).provenance == other.provenance


def damage_cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_bit(file):
    content = bytearray(file.read_bytes())
    content[-200] ^= 1
    file.write_bytes(content)


def damage_gone(file):
    file.unlink()


def damage_other(file):
    torch.save({"step": 1}, file)


@pytest.mark.parametrize("damage", [damage_cut, damage_bit, damage_gone, damage_other])
@pytest.mark.parametrize("file", ["hypernetwork.safetensors", "training_state.pt"])
def test_a_damaged_checkpoint_is_passed_over_and_the_run_is_the_same(tmp_path, file, damage):
    trainer(tmp_path).train()
    expected = hn.load_hypernetwork(tmp_path / "hypernetwork.pt")
    if (file, damage) == ("training_state.pt", damage_bit):
        damage = damage_cut  # the end of this file is its directory
    damage(tmp_path / "checkpoints" / "step-000004" / file)
    net = make_net()
    with pytest.warns(UserWarning, match=r"step-000004.*continues from .*step-000002"):
        assert trainer(tmp_path, net).train(resume=True).step == 4
    assert same(net, expected)
    assert steps_logged(tmp_path) == [1, 2, 3, 4]
    assert read_checkpoint(tmp_path / "checkpoints" / "step-000004", net).state["step"] == 4


def test_damage_without_another_checkpoint_is_an_error(tmp_path):
    trainer(tmp_path, checkpoint_every=0).train()
    path = tmp_path / "checkpoints" / "step-000004"
    damage_cut(path / "training_state.pt")
    for resume in (True, path):
        with pytest.raises(hn.CheckpointError, match=r"step-000004.training_state\.pt"):
            trainer(tmp_path).train(resume=resume)


def state_of(net, mark):
    optimizer = torch.optim.AdamW(net.parameters()).state_dict()
    names = [name for name, _ in net.named_parameters()]
    return {"step": 3, "recent_losses": [mark], "optimizer": optimizer, "parameters": names, "scaler": None, "run": {}}


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    net = make_net()
    for step in (999_999, 1_000_000, 2):
        save_state(tmp_path, step, net, {**state_of(net, 0.0), "step": step})
    (tmp_path / "step-last").mkdir()
    (tmp_path / "step-9999999").touch()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-1000000", "step-999999", "step-000002"]
    assert latest_checkpoint(tmp_path, net).state["step"] == 1_000_000


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [*ERRORS, Killed()], ids=["full", "denied", "killed"])
def test_a_fault_while_a_checkpoint_is_written_leaves_the_old_or_the_new(tmp_path, monkeypatch, error, after):
    net = make_net()
    for number, fault in enumerate(every_fault(monkeypatch, error, after=after)):
        folder = tmp_path / str(number)
        save_state(folder, 3, net, state_of(net, 1.0))
        try:
            with fault:
                save_state(folder, 3, net, state_of(net, 2.0))
        except (hn.CheckpointError, Killed):
            failed = True
        else:
            failed = False
        assert os.listdir(folder) == ["step-000003"]
        marks = read_checkpoint(folder / "step-000003", net).state["recent_losses"]
        assert marks in ([1.0], [2.0]) if failed else marks == [2.0]
    assert number > 5


def test_a_checkpoint_whose_writer_was_killed_comes_back(tmp_path, monkeypatch):
    net = make_net()
    for number, fault in enumerate(every_fault(monkeypatch, Killed(), dead=True)):
        folder = RunFolder(tmp_path / str(number))
        save_state(folder.checkpoints, 3, net, state_of(net, 1.0))
        try:
            with fault:
                save_state(folder.checkpoints, 3, net, state_of(net, 2.0))
        except Killed:
            with folder.locked():
                pass
        assert os.listdir(folder.checkpoints) == ["step-000003"]
        assert latest_checkpoint(folder.checkpoints, net).state["recent_losses"] in ([1.0], [2.0])


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_whole(tmp_path, monkeypatch):
    def fill_the_disk(step, metrics):
        if step == 3:
            monkeypatch.setattr(os, "fsync", full)

    def full(descriptor):
        raise ERRORS[0]

    with pytest.raises(hn.CheckpointError, match=r"step-000004.*No space left on device"):
        trainer(tmp_path, callback=fill_the_disk).train()
    monkeypatch.undo()
    assert os.listdir(tmp_path / "checkpoints") == ["step-000002"]
    assert trainer(tmp_path).train(resume=True).step == 4


def test_a_run_without_a_checkpoint_says_what_to_remove(tmp_path):
    with pytest.raises(RuntimeError, match="early"):
        trainer(tmp_path, callback=fail_at(1)).train()
    with pytest.raises(
        ValueError, match=r"no checkpoint to resume.*; remove .*log\.csv and start a run without resume"
    ):
        trainer(tmp_path).train(resume=True)
    (tmp_path / "log.csv").unlink()
    assert trainer(tmp_path).train().step == 4


def fail_at(number):
    def callback(step, metrics):
        if step == number:
            raise RuntimeError("early")

    return callback


def test_a_divergence_at_the_start_can_be_resumed(tmp_path):
    net = make_net()
    next(net.parameters()).register_hook(lambda g: g * torch.nan)
    with pytest.raises(DivergenceError, match=r"step-000000"):
        trainer(tmp_path, net).train()
    assert trainer(tmp_path).train(resume=True).step == 4


ROWS = ["1,0,0.5,0.5,0.01,1,9,1", "2,0,0.4,0.45,0.01,1,9,1"]
HEADER = "step,epoch,loss,mean_loss,learning_rate,grad_norm,iterations_per_second,memory_gb"


@pytest.mark.parametrize(
    ("tail", "whole"),
    [
        ("3,0,0.3,0.4,0.01,1,9,1\r\n", 3),
        ("3,0,0.3", 2),
        ("3,0,0.3,0.4,0.01,1,9,1", 2),
        ("3,0,0.3\r\n", 2),
        ('3,0,"0.3,0.4,0.01,1,9,1\r\n', 2),
        ("x,0,0.3,0.4,0.01,1,9,1\r\n", 2),
        ("\0\0\0\0\0\0", 2),
        ("\0\0\r\n3,0,0.3,0.4,0.01,1,9,1\r\n", 3),
        ("2,0,0.3,0.4,0.01,1,9,1\r\n", 2),
        ("4,0,0.3,0.4,0.01,1,9,1\r\n", 2),
        ("\udcff\r\n", 2),
    ],
)
def test_a_damaged_log_keeps_its_whole_rows(tmp_path, tail, whole):
    path = tmp_path / "log.csv"
    path.write_bytes(("\r\n".join([HEADER, *ROWS]) + "\r\n" + tail).encode(errors="surrogateescape"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with CsvLog(path, keep_until=3) as log:
            log.write({"step": 4, "epoch": 1, "loss": 0.25, "mean_loss": 0.4, "learning_rate": 0.01} | {"seconds": 1})
    assert [bool(caught)] == [whole < 3]
    assert all(f"{whole} whole rows for the 3 steps" in str(w.message) for w in caught)
    lines = path.read_text().splitlines()
    assert lines[: 1 + len(ROWS)] == [HEADER, *ROWS]
    assert [int(line.split(",")[0]) for line in lines[1:]] == [1, 2, *([3] if whole == 3 else []), 4]


@pytest.mark.parametrize("error", [*ERRORS, Killed()], ids=["full", "denied", "killed"])
def test_a_fault_while_a_log_is_taken_up_leaves_its_rows(tmp_path, monkeypatch, error):
    text = "\r\n".join([HEADER, *ROWS]) + "\r\n"
    for number, fault in enumerate(every_fault(monkeypatch, error)):
        path = tmp_path / str(number) / "log.csv"
        path.parent.mkdir()
        path.write_text(text, newline="")
        try:
            with fault, CsvLog(path, keep_until=2):
                pass
        except (hn.CheckpointError, OSError, Killed):
            pass
        assert os.listdir(path.parent) == ["log.csv"]
        assert len(rows_of(path)) == 2


def test_a_run_with_a_log_cut_in_a_row_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, callback=lambda step, metrics: step == 2 and signal.raise_signal(signal.SIGINT)).train()
    log = tmp_path / "log.csv"
    log.write_bytes(log.read_bytes() + b"3,0,0.1")
    trainer(tmp_path).train(resume=True)
    assert steps_logged(tmp_path) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "makes no file name"),
        ("..", "makes no file name"),
        (None, "makes no file name"),
        ("ü" * 130, "shorten the"),
        ("start", "is that of start.safetensors, in which a run keeps what it began with; give it another"),
    ],
)
def test_a_name_that_makes_no_file_is_refused_at_once(tmp_path, name, message):
    net = make_net()
    net.provenance.name = name
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, net)


def test_odd_names_make_plain_files(tmp_path):
    result = trainer(tmp_path, make_net(name="a/b\0c: d"), max_steps=1).train()
    assert [file.name for file in result.files] == ["a_b_c__d.safetensors", "a_b_c__d.pt"]
