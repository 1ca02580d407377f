"""The losses of pictures that are not trained on."""

import math

import pytest
import torch

import hnkernels as hn
from hnkernels.training.data.tensor_data import TensorData
from hnkernels.training.families import family_of
from hnkernels.training.losses import Process
from hnkernels.training.objective import Objective
from hnkernels.training.processes import ALONE
from hnkernels.training.sampler import generator_of
from hnkernels.training.step import adapter_of
from hnkernels.training.validation import Validation, split
from tests.training.nets import make_net, make_rows, make_unet


@pytest.fixture(autouse=True)
def _without_a_report(monkeypatch):
    """Drawing one takes longer than a run of these tests."""
    monkeypatch.setattr("hnkernels.training.progress.reporter.write_report", lambda *args, **kwargs: None)


@pytest.fixture
def unet():
    return make_unet().requires_grad_(False)


def moved_net():
    net = make_net(dropout_structure=(0, 0.3, 0))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    return net


def validation(unet, net, rows=None, held=(1, 3), trained=(0, 2, 4), batch_size=3, **objective):
    family = family_of(unet)
    process = Process(family, family.noising(), Objective(**objective))
    return Validation(process, net, unet, TensorData(rows or make_rows()), held, trained, batch_size, "no", ALONE)


def by_hand(unet, row, place, low=0, high=1000):
    """The losses of a picture in float64, one draw after another."""
    process = family_of(unet).noising()
    losses = []
    for draw in range(8):
        noise = torch.randn(row["latents"].shape, generator=generator_of(0, "validation", place, draw))[None]
        timestep = torch.tensor([math.floor(low + (high - low) * (2 * draw + 1) / 16)])
        noisy = process.noisy(row["latents"][None], noise, timestep)
        with torch.no_grad():
            prediction = unet(noisy, timestep, row["encoder_hidden_states"][None]).sample.double()
        losses.append(float((prediction - noise).square().mean()))
    return losses


@pytest.mark.parametrize("limits", [{}, {"min_timestep": 100, "max_timestep": 260}])
def test_losses_are_those_computed_by_hand(unet, limits):
    net, rows = moved_net(), make_rows()
    low, high = limits.get("min_timestep", 0), limits.get("max_timestep", 1000)
    base = [by_hand(unet, rows[i], place, low, high) for place, i in enumerate((1, 3))]
    with hn.attach(unet, net):
        measured, of_trained = validation(unet, net, **limits).measure()
        net.eval()
        with_net = [by_hand(unet, rows[i], place, low, high) for place, i in enumerate((1, 3))]
        trained = [by_hand(unet, rows[i], place, low, high) for place, i in enumerate((0, 2))]
    assert measured.base.tolist() == [pytest.approx(losses, rel=1e-5) for losses in base]
    assert measured.losses.tolist() == [pytest.approx(losses, rel=1e-5) for losses in with_net]
    assert of_trained == pytest.approx(sum(map(sum, trained)) / 16, rel=1e-5)
    assert measured.loss != pytest.approx(sum(map(sum, base)) / 16, rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 50])
def test_draws_are_the_same_with_every_batch_size_and_whatever_the_global_generator_says(unet, batch_size):
    net = moved_net()
    with hn.attach(unet, net):
        expected, _ = validation(unet, net, batch_size=8).measure()
        torch.manual_seed(batch_size)
        state = torch.get_rng_state()
        measured, _ = validation(unet, net, batch_size=batch_size).measure()
    assert torch.equal(torch.get_rng_state(), state)
    assert measured.losses.tolist() == [pytest.approx(losses, rel=1e-5) for losses in expected.losses.tolist()]


def test_the_base_models_losses_are_measured_once(unet):
    net, calls = moved_net(), []
    hook = unet.register_forward_pre_hook(lambda *_: calls.append(adapter_of(unet, net).enabled))
    with hn.attach(unet, net):
        one = validation(unet, net, batch_size=8)
        one.measure()
        assert calls == [False] * 2 + [True] * 4
        calls.clear()
        one.measure()
        assert calls == [True] * 4
    hook.remove()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_mode_and_adapter_are_as_before_whatever_happens(unet, training, enabled, fails):
    net = moved_net().train(training)
    with hn.attach(unet, net) as adapter:
        adapter.enabled = enabled
        one = validation(unet, net)
        if fails:
            one.data.rows = [{**row, "latents": torch.zeros(4, 3)} for row in one.data.rows]
            with pytest.raises(Exception):  # noqa: B017 - whatever the model raises
                one.measure()
        else:
            one.measure()
        assert adapter.enabled is enabled
        assert net.training is training


@pytest.mark.parametrize(("count", "share", "held"), [(10, 0.2, 2), (10, 0.01, 1), (10, 3, 3), (2, 0.5, 1), (5, 0, 0)])
def test_a_share_or_a_number_is_held_out_and_the_same_one_every_time(count, share, held):
    own, others = split(count, share)
    assert len(others) == held
    assert sorted(own + others) == list(range(count))
    assert (own, others) == split(count, share)


@pytest.mark.parametrize(("count", "share"), [(1, 0.1), (3, 3), (3, 0.9), (2, 7)])
def test_something_must_be_left_to_train_on(count, share):
    with pytest.raises(ValueError, match=rf"validation_split holds out \d of {count} pictures; hold out less, or give"):
        split(count, share)


def run(unet, out, rows, resume=False, **config):
    config = {"max_steps": 4, "batch_size": 2, "learning_rate": 1e-2, "progress": False, **config}
    net = make_net(dropout_structure=(0, 0.2, 0))
    hn.HypernetworkTrainer(net, unet, {**config, "output_dir": str(out)}, rows).train(resume=resume)
    return net


def equal(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_training_is_the_same_with_and_without_it(unet, tmp_path):
    rows = make_rows(6)
    own, _ = split(6, 1)
    plain = run(unet, tmp_path / "0", [rows[i] for i in own])
    for every in (1, 3):
        assert equal(plain, run(unet, tmp_path / str(every), rows, validation_split=1, validate_every=every))


def test_the_best_network_is_kept_and_a_resumed_run_knows_it(unet, tmp_path):
    rows, config = make_rows(6), {"validation_split": 2, "validate_every": 1, "checkpoint_every": 2}
    whole = run(unet, tmp_path / "0", rows, **config)
    assert (tmp_path / "0" / f"{whole.provenance.name}-best.safetensors").exists()
    run(unet, tmp_path / "1", rows, **{**config, "max_steps": 2})
    resumed = run(unet, tmp_path / "1", rows, resume=True, **config)
    assert equal(whole, resumed)
    files = [tmp_path / name / f"{whole.provenance.name}-best.safetensors" for name in "01"]
    best = [hn.load_hypernetwork(file) for file in files]
    assert equal(*best)
    assert (tmp_path / "0" / "validation.csv").read_text() == (tmp_path / "1" / "validation.csv").read_text()
