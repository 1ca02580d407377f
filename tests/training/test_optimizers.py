"""Optimisers by name, learning rates over the steps, factors on them, and the moving average."""

import math

import pytest
import torch

import hnkernels as hn
from hnkernels.training.config import TrainingConfig
from hnkernels.training.optimizers import learning_rate_at, make_optimizer, optimizer_class
from tests.models import TEXT_WIDTH, WIDTHS
from tests.training.nets import make_net, make_rows, make_unet
from tests.training.test_weights import make_gen

PACKAGES = {"lion": "lion_pytorch", "prodigy": "prodigyopt"}


def optimizer(net=None, unet=None, **config):
    return make_optimizer(net or make_net(), TrainingConfig.of(config), unet or make_unet())


def train(out, net=None, callback=None, **config):
    net = net or make_net()
    settings = {"output_dir": str(out), "progress": False, "learning_rate": 1e-2, "batch_size": 2, **config}
    hn.HypernetworkTrainer(net, make_unet(), settings, make_rows(), callback).train()
    return net


@pytest.mark.parametrize(
    ("name", "expected"),
    [("adamw", "AdamW"), ("SGD", "SGD"), ("Adafactor", "Adafactor"), ("torch.optim.RAdam", "RAdam")],
)
def test_an_optimizer_goes_by_its_name(name, expected, tmp_path):
    assert optimizer_class(name).__name__ == expected
    net = train(tmp_path, optimizer=name, max_steps=2)
    assert any((a != b).any() for a, b in zip(net.parameters(), make_net().parameters(), strict=True))


@pytest.mark.parametrize(
    "config",
    [
        {"optimizer": "sgd", "optimizer_args": {"momentum": 0.9, "nesterov": True}, "lr_scheduler": "cosine"},
        {"optimizer": "lion", "learning_rate": 1e-3},
        {"optimizer": "prodigy", "learning_rate": 1.0, "optimizer_args": {"safeguard_warmup": True}},
    ],
    ids=lambda config: config["optimizer"],
)
def test_a_run_with_any_optimizer_is_resumed_bit_for_bit(tmp_path, config):
    if config["optimizer"] in PACKAGES:
        pytest.importorskip(PACKAGES[config["optimizer"]])
    whole = train(tmp_path / "whole", max_steps=6, checkpoint_every=3, **config)
    folder = tmp_path / "whole" / "checkpoints" / "step-000003"
    net, out = make_net(), tmp_path / "rest"
    settings = {"output_dir": str(out), "progress": False, "learning_rate": 1e-2, "batch_size": 2, "max_steps": 6}
    hn.HypernetworkTrainer(net, make_unet(), {**settings, **config}, make_rows()).train(resume=folder)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), net.parameters(), strict=True))
    assert any((a != b).any() for a, b in zip(whole.parameters(), make_net().parameters(), strict=True))


def test_prodigy_with_several_learning_rates_is_refused_and_may_leave_parts_out():
    pytest.importorskip(PACKAGES["prodigy"])
    with pytest.raises(ValueError, match=r"finds one learning rate .* makes 0\.5 and 1 of it; leave them out"):
        optimizer(optimizer="prodigy", learning_rate=1.0, learning_rate_factors={"k": 0.5})
    made = optimizer(optimizer="prodigy", learning_rate=1.0, learning_rate_factors={"k": 0})
    assert {group["factor"] for group in made.param_groups} == {0.0, 1.0}


def test_another_optimizer_starts_anew_when_a_run_goes_on_with_it(tmp_path):
    train(tmp_path, max_steps=2)
    settings = {"output_dir": str(tmp_path), "progress": False, "batch_size": 2, "max_steps": 3, "optimizer": "sgd"}
    trainer = hn.HypernetworkTrainer(make_net(), make_unet(), settings, make_rows())
    with pytest.warns(UserWarning, match="this run begins with a fresh one"):
        assert trainer.train(resume=True, allow_changes=True).step == 3


def test_arguments_reach_the_optimizer_and_biases_do_not_decay():
    made = optimizer(optimizer_args={"betas": [0.8, 0.9], "eps": 1e-6}, weight_decay=0.3)
    assert {(tuple(g["betas"]), g["eps"]) for g in made.param_groups} == {((0.8, 0.9), 1e-6)}
    decay = {p: g["weight_decay"] for g in made.param_groups for p in g["params"]}
    assert {(p.ndim > 1, value) for p, value in decay.items()} == {(True, 0.3), (False, 0.0)}


@pytest.mark.parametrize(
    ("factors", "chosen"),
    [
        ({"k": 2.0}, lambda width, stream: 2.0 if stream == 0 else 1.0),
        ({"v": 0.5, str(TEXT_WIDTH): 3.0}, lambda width, stream: (0.5 if stream else 1.0) * (3 if width == 12 else 1)),
        ({"attn2": 0.0}, lambda width, stream: 0.0 if width == TEXT_WIDTH else 1.0),
        ({"attn1": 4.0}, lambda width, stream: 4.0 if width in WIDTHS else 1.0),
    ],
)
def test_factors_on_the_learning_rate_by_stream_width_and_kind(factors, chosen):
    net = make_net()
    made = optimizer(net, learning_rate_factors=factors)
    found = {p: g["factor"] for g in made.param_groups for p in g["params"]}
    for width in net:
        for stream, mlp in enumerate(net[width]):
            assert {found[p] for p in mlp.parameters()} == {chosen(width, stream)}


def test_a_factor_of_zero_leaves_those_weights_as_they_are(tmp_path):
    net, start = train(tmp_path, learning_rate_factors={"k": 0}, max_steps=2, weight_decay=0.5), make_net()
    for width in net:
        for stream, (a, b) in enumerate(zip(net[width], start[width], strict=True)):
            same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
            assert all(same) if stream == 0 else not all(same)


def test_factors_by_kind_are_refused_where_a_width_serves_both():
    unet = make_unet()
    net = hn.Hypernetwork((8, 16))
    for layer in unet.modules():
        if hasattr(layer, "to_k") and layer.to_k.in_features == TEXT_WIDTH:
            layer.to_k = layer.to_v = torch.nn.Linear(8, layer.to_k.out_features)
    with pytest.raises(ValueError, match="'attn1', and the network's 8 acts on both kinds"):
        optimizer(net, unet, learning_rate_factors={"attn1": 2})


def test_factors_by_the_parts_of_a_network_that_generates_weights():
    gen = make_gen(make_unet(), embedding_dim=TEXT_WIDTH)
    made = optimizer(gen, learning_rate_factors={"encoder": 0.1})
    found = {p: g["factor"] for g in made.param_groups for p in g["params"]}
    assert {found[p] for p in gen.encoder.parameters()} == {0.1}
    assert {found[p] for p in gen.decoder.parameters()} == {1.0}


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("constant_with_warmup", {}, lambda t: min(1, t / 4)),
        ("linear", {}, lambda t: t / 4 if t < 4 else (20 - t) / 16),
        ("cosine", {}, lambda t: t / 4 if t < 4 else 0.5 * (1 + math.cos(math.pi * (t - 4) / 16))),
        ("polynomial", {"power": 2.0}, lambda t: t / 4 if t < 4 else (1 - (t - 4) / 16) ** 2),
    ],
)
def test_schedulers_of_diffusers_by_name(name, args, expected):
    config = TrainingConfig(learning_rate=0.01, lr_scheduler=name, lr_warmup_steps=4, lr_scheduler_args=args)
    rate = learning_rate_at(config, 20)
    assert [rate(t) for t in range(20)] == pytest.approx([0.01 * expected(t) for t in range(20)], abs=2e-7)


def test_a_resumed_run_with_another_end_is_told_that_the_schedule_differs(tmp_path):
    config = {"lr_scheduler": "linear"}
    train(tmp_path, max_steps=2, **config)
    settings = {"output_dir": str(tmp_path), "progress": False, "learning_rate": 1e-2, "batch_size": 2, "max_steps": 5}
    trainer = hn.HypernetworkTrainer(make_net(), make_unet(), {**settings, **config}, make_rows())
    with pytest.raises(ValueError, match=r"steps of the lr_scheduler \(2 then, 5 now\)"):
        trainer.train(resume=True)


def test_the_average_is_what_is_saved_and_the_network_trains_on_by_itself(tmp_path):
    weights = []
    net = make_net()
    plain = train(tmp_path / "plain", max_steps=4)
    train(
        tmp_path / "ema", net, lambda *_: weights.append([p.detach().clone() for p in net.parameters()]),
        max_steps=4, ema_decay=0.7,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
    average = [p.detach().clone() for p in make_net().parameters()]
    for step, now in enumerate(weights):  # the first steps count more, as EMAModel says
        decay = 0.0 if step == 0 else min(0.7, (1 + step) / (10 + step))
        average = [a + (1 - decay) * (b - a) for a, b in zip(average, now, strict=True)]
    saved = hn.load_hypernetwork(tmp_path / "ema" / "hypernetwork.safetensors")
    for a, b in zip(saved.parameters(), average, strict=True):
        torch.testing.assert_close(a, b)
    assert not (tmp_path / "ema" / "hypernetwork.pt.optim").exists()  # it would be of other weights


def test_a_run_with_an_average_is_resumed_bit_for_bit(tmp_path):
    train(tmp_path / "whole", max_steps=6, checkpoint_every=3, ema_decay=0.7)
    settings = {"output_dir": str(tmp_path / "rest"), "progress": False, "learning_rate": 1e-2, "batch_size": 2}
    trainer = hn.HypernetworkTrainer(
        make_net(), make_unet(), {**settings, "max_steps": 6, "ema_decay": 0.7}, make_rows()
    )
    trainer.train(resume=tmp_path / "whole" / "checkpoints" / "step-000003")
    nets = [hn.load_hypernetwork(tmp_path / name / "hypernetwork.safetensors") for name in ("whole", "rest")]
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True))


@pytest.mark.parametrize(
    ("name", "args"), [("piecewise_constant", {}), ("cosine", {"last_epoch": 3}), ("polynomial", {"lr_end": 1.0})]
)
def test_a_scheduler_that_cannot_be_made_is_refused(name, args):
    config = TrainingConfig(learning_rate=0.01, lr_scheduler=name, lr_scheduler_args=args)
    with pytest.raises(ValueError, match=rf"lr_scheduler '{name}' with .* cannot be made: "):
        learning_rate_at(config, 10)
