"""The whole training job."""

import csv
import math
import signal

import pytest
import torch

import hnkernels as hn
from hnkernels.training import DivergenceError, run
from tests.training.nets import make_net, make_rows, make_unet, taken


def trainer(out, net=None, callback=None, **config):
    settings = {"learning_rate": 1e-2, "batch_size": 2, "max_epochs": 4, "output_dir": str(out), "progress": False}
    return hn.HypernetworkTrainer(net or make_net(), make_unet(), {**settings, **config}, make_rows(), callback)


def log_of(out):
    with (out / "log.csv").open() as file:
        return list(csv.DictReader(file))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_run_leaves_the_network_in_both_formats_and_a_log(tmp_path):
    job = trainer(tmp_path)
    result = job.train()
    assert (result.step, result.stopped) == (12, "finished")  # 5 examples, 3 steps an epoch
    assert [path.name for path in result.files] == ["hypernetwork.safetensors", "hypernetwork.pt"]
    for path in result.files:
        loaded = hn.load_hypernetwork(path)
        assert same(loaded, job.net)
        assert loaded.provenance.step == 12
    rows = log_of(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [float(row["loss"]) for row in rows] == pytest.approx(result.losses, rel=1e-5)
    assert not job.net.training
    assert all(p.requires_grad for p in job.unet.parameters())
    assert not [m for m in job.unet.modules() if "forward" in m.__dict__]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"gradient_accumulation_steps": 2, "batch_size": 1},
        {"learning_rate": "1e-2:3, 1e-3"},
        {"mixed_precision": "bf16", "gradient_checkpointing": True},
        {"mixed_precision": "fp16"},
    ],
    ids=lambda c: ",".join(c) or "plain",
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, config):
    whole = trainer(tmp_path / "whole", make_net(dropout_structure=(0, 0.3, 0)), **config)
    whole.train()
    columns = ("step", "epoch", "loss", "mean_loss", "learning_rate", "grad_norm")
    expected = [[row[c] for c in columns] for row in log_of(tmp_path / "whole")]
    for at in (1, 3, 5):

        def stop(step, metrics, at=at):
            if step == at:
                signal.raise_signal(signal.SIGINT)

        out = tmp_path / f"stopped at {at}"
        with pytest.raises(KeyboardInterrupt):
            trainer(out, make_net(dropout_structure=(0, 0.3, 0)), stop, **config).train()
        rest = trainer(out, make_net(dropout_structure=(0, 0.3, 0)), **config)
        torch.manual_seed(123)  # whatever else the program drew in between
        result = rest.train(resume=True)
        assert same(whole.net, rest.net)
        assert [[row[c] for c in columns] for row in log_of(out)] == expected
        assert result.step == len(expected)


def test_every_step_has_its_own_random_numbers_and_leaves_the_programs_alone(tmp_path):
    drawn = []

    def draw_and_denoise(step):
        drawn.append(tuple(torch.rand(8).tolist()))  # as dropout does
        return hn.training.denoising(step)

    job = trainer(tmp_path, max_steps=3)
    job.loss = draw_and_denoise
    torch.manual_seed(123)
    job.train()
    assert len(set(drawn)) == len(drawn) == 3
    after = torch.rand(8)
    torch.manual_seed(123)
    assert torch.equal(torch.rand(8), after)


def test_a_clip_schedule_that_has_ended_stays_at_its_last_limit(tmp_path):
    whole, short = make_net(), make_net()
    trainer(tmp_path / "whole", whole, gradient_clip="1e-3", gradient_clip_mode="value").train()
    trainer(tmp_path / "short", short, gradient_clip="1e-3:2", gradient_clip_mode="value").train()
    assert same(whole, short)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_as_soon_as_the_log_is_there_leaves_a_checkpoint(tmp_path, monkeypatch):
    class Interrupted(run.RunReporter):
        def __init__(self, *args):
            super().__init__(*args)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run, "RunReporter", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path).train()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


@pytest.mark.usefixtures("interruptible")
def test_interrupting_saves_and_detaches(tmp_path):
    job = trainer(tmp_path, callback=lambda step, metrics: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        job.train()
    assert (tmp_path / "checkpoints" / "step-000001").is_dir()
    assert not [m for m in job.unet.modules() if "forward" in m.__dict__]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_resume_drops_the_rows_that_were_logged_after_the_checkpoint(tmp_path):
    with pytest.raises(RuntimeError, match="stop"):
        trainer(tmp_path, callback=raise_at(5), checkpoint_every=3).train()
    assert len(log_of(tmp_path)) == 5
    trainer(tmp_path, checkpoint_every=3).train(resume=True)
    assert [int(row["step"]) for row in log_of(tmp_path)] == list(range(1, 13))


def raise_at(at):
    def callback(step, metrics):
        if step == at:
            raise RuntimeError("stop")

    return callback


def test_checkpoints_come_every_n_steps_and_at_the_end(tmp_path):
    trainer(tmp_path, checkpoint_every=5).train()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000005", "step-000010", "step-000012"]


def test_a_nan_stops_the_run_and_the_last_good_state_is_kept(tmp_path):
    net = make_net()

    def poison(step, metrics):
        if step == 3:
            kept.update({k: v.clone() for k, v in net.state_dict().items()})
            next(net.parameters()).register_hook(lambda g: g * math.nan)

    kept: dict = {}
    with pytest.raises(DivergenceError, match=r"step 4: .*step-000003"):
        trainer(tmp_path, net, poison).train()
    loaded = hn.load_hypernetwork(tmp_path / "checkpoints" / "step-000003" / "hypernetwork.safetensors")
    assert all(torch.equal(kept[k], v) for k, v in loaded.state_dict().items())
    assert not (tmp_path / "hypernetwork.pt").exists()


def test_a_schedule_that_ends_stops_the_run(tmp_path):
    result = trainer(tmp_path, learning_rate="1e-2:2, 1e-3:4").train()
    assert (result.step, result.stopped) == (4, "schedule")
    assert [float(row["learning_rate"]) for row in log_of(tmp_path)] == [1e-2, 1e-2, 1e-3, 1e-3]


def test_gradients_are_clipped_to_the_end_of_the_run(tmp_path, monkeypatch):
    seen = []

    def step(*args, gradient_clip, **kwargs):
        seen.append(gradient_clip)
        return taken(1)

    monkeypatch.setattr("hnkernels.training.run.take_step", step)
    trainer(tmp_path, gradient_clip="1:1, 0.5:2", max_steps=4).train()
    assert seen == [1, 0.5, 0.5, 0.5]


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    trainer(tmp_path, max_steps=1).train()
    with pytest.raises(ValueError, match="resume=True"):
        trainer(tmp_path).train()


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint to resume"):
        trainer(tmp_path).train(resume=True)
    with pytest.raises(ValueError, match="no checkpoint to resume"):
        trainer(tmp_path).train(resume=tmp_path / "nowhere")


def test_resuming_with_another_network_is_refused(tmp_path):
    trainer(tmp_path, max_steps=1).train()
    with pytest.raises(ValueError, match="holds a hypernetwork of widths"):
        trainer(tmp_path, make_net(layer_structure=(1, 3, 1))).train(resume=True)


def test_a_path_in_the_place_of_the_network_is_refused():
    with pytest.raises(ValueError, match=r"not str; load one with load_hypernetwork\(path\)"):
        hn.HypernetworkTrainer("style.pt", None)


def test_only_the_targets_act(tmp_path):
    net = make_net()
    before = [p.clone() for p in net[8][0].parameters()]
    trainer(tmp_path, net, target_layers=["attn2"], max_steps=2, gradient_clip=None).train()
    assert all(torch.equal(a, b) for a, b in zip(before, net[8][0].parameters(), strict=True))


def test_training_continues_a_loaded_network_and_counts_on(tmp_path):
    trainer(tmp_path / "a", max_steps=2).train()
    net = hn.load_hypernetwork(tmp_path / "a" / "hypernetwork.pt")
    trainer(tmp_path / "b", net, max_steps=3).train()
    assert hn.load_hypernetwork(tmp_path / "b" / "hypernetwork.pt").provenance.step == 5


def test_mistakes_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="no data"):
        hn.HypernetworkTrainer(make_net(), make_unet(), {"output_dir": str(tmp_path / "x")}).train()
    with pytest.raises(ValueError, match="images need a pipeline"):
        hn.HypernetworkTrainer(make_net(), make_unet(), {"output_dir": str(tmp_path / "x")}, tmp_path).train()
    with pytest.raises(ValueError, match="previews need a pipeline"):
        hn.HypernetworkTrainer(make_net(), make_unet(), {"preview_every": 1, "preview_prompts": "a"})
    with pytest.raises(ValueError, match="encoded data needs"):
        hn.HypernetworkTrainer(make_net(), make_unet(), None, [{"latents": torch.zeros(4, 8, 8)}]).train()
    with pytest.raises(hn.AdapterError, match="another model"):
        hn.HypernetworkTrainer(hn.Hypernetwork((999,)), make_unet())
    assert not (tmp_path / "x").exists()
