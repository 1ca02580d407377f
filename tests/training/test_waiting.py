"""Nothing in a step waits for the device: its numbers are read when the next step is on its way."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hnkernels as hn
from hnkernels.training.run import Run
from hnkernels.training.step import Taken
from tests.training.nets import make_net, make_rows, make_unet

_WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.equal.default}


class Waits(TorchDispatchMode):
    """Counts operations that bring a value of a tensor to Python, where a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in _WAITS:
            self.found.append(function)
        return function(*args, **(kwargs or {}))


def train(out, **config):
    settings = {"output_dir": str(out), "progress": False, "learning_rate": 1e-2, "batch_size": 2, "max_steps": 4}
    hn.HypernetworkTrainer(make_net(), make_unet(), {**settings, **config}, make_rows()).train()


@pytest.fixture
def order(monkeypatch):
    """What happens in which order, and how often a step waits."""
    events, waits = [], []
    one_step, metrics = Run._one_step, Taken.metrics

    def watched_step(self, *args):
        events.append(f"step {self.state.step + 1}")
        with Waits() as mode:
            taken = one_step(self, *args)
        waits.append(len(mode.found))
        return taken

    def watched_metrics(self):
        events.append("read")
        return metrics(self)

    monkeypatch.setattr(Run, "_one_step", watched_step)
    monkeypatch.setattr(Taken, "metrics", watched_metrics)
    return events, waits


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"gradient_accumulation_steps": 2, "gradient_clip_mode": "value", "mixed_precision": "bf16"},
        {"ema_decay": 0.9, "snr_gamma": 5.0, "noise_offset": 0.1, "learning_rate_factors": {"k": 0.5}},
        {"optimizer": "sgd", "lr_scheduler": "cosine"},
    ],
    ids=lambda config: ",".join(config) or "plain",
)
def test_no_step_waits_and_numbers_are_read_one_step_late(tmp_path, order, config):
    train(tmp_path, **config)
    events, waits = order
    assert waits == [0] * 4
    assert events == ["step 1", "step 2", "read", "step 3", "read", "step 4", "read", "read"]


def test_an_optimizer_that_cannot_leave_out_a_step_by_itself_waits(tmp_path, order):
    train(tmp_path, optimizer="radam")
    assert all(order[1])  # and looks at its own counts of steps


def test_numbers_are_read_at_once_before_something_is_kept(tmp_path, order):
    train(tmp_path, checkpoint_every=2)
    assert order[0] == ["step 1", "step 2", "read", "read", "step 3", "step 4", "read", "read"]


def test_no_step_after_one_that_is_not_finite_changes_anything(tmp_path, monkeypatch):
    net, seen = make_net(), []

    def loss(step):
        seen.append([p.detach().clone() for p in net.parameters()])
        value = hn.training.denoising(step)
        return value * float("inf") if len(seen) == 2 else value

    settings = {"output_dir": str(tmp_path), "progress": False, "learning_rate": 1e-2, "max_steps": 4}
    trainer = hn.HypernetworkTrainer(net, make_unet(), settings, make_rows(), loss=loss)
    with pytest.raises(hn.training.DivergenceError, match=r"step 2: .*step-000001"):
        trainer.train()
    assert len(seen) == 3  # the third was on its way when the second was read
    for before, after in ((seen[1], seen[2]), (seen[2], list(net.parameters()))):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    kept = hn.load_hypernetwork(tmp_path / "checkpoints" / "step-000001" / "hypernetwork.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), seen[1], strict=True))
