"""That every setting does what it says, and nothing that it says is lost on the way to a step."""

import csv
import dataclasses
import signal
from types import SimpleNamespace

import diffusers
import pytest
import torch
from packaging.version import Version

import hnkernels as hn
from hnkernels import TrainingConfig
from hnkernels.training import denoising
from hnkernels.training.persistence.run_record import differences, run_record
from tests.adapter.test_composition import in_int8
from tests.models import randomise
from tests.training.nets import make_net, make_rows, make_unet, taken


def trainer(out, net=None, rows=None, loss=denoising, unet=None, **config):
    settings = {"learning_rate": 1e-2, "batch_size": 2, "max_epochs": 4, "output_dir": str(out), "progress": False}
    data = rows or make_rows()
    return hn.HypernetworkTrainer(net or make_net(), unet or make_unet(), {**settings, **config}, data, loss=loss)


@pytest.fixture
def steps(monkeypatch):
    """What every step was given. Nothing is computed."""
    seen = []

    def step(net, unet, batches, optimizer, **options):
        seen.append(SimpleNamespace(net=net, batches=batches, optimizer=optimizer, **options))
        return taken(len(seen))

    monkeypatch.setattr("hnkernels.training.run.take_step", step)
    return seen


def order_of(steps):
    """The examples in the order of the steps, by the first number of their latents."""
    numbers = [row["latents"].flatten()[0].item() for row in make_rows()]
    return [numbers.index(first) for s in steps for b in s.batches for first in b["latents"].flatten(1)[:, 0].tolist()]


def test_every_epoch_has_every_example_once_in_an_order_of_its_own(tmp_path, steps):
    orders = []
    for seed in (0, 1):
        trainer(tmp_path / str(seed), seed=seed).train()
        order = order_of(steps)
        assert len(steps) == 12
        epochs = [order[i : i + 5] for i in range(0, 20, 5)]
        assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
        orders.append(order)
        steps.clear()
    assert orders[0] != orders[1]


def test_every_step_draws_from_a_generator_of_its_own_that_follows_the_seed(tmp_path, steps):
    for seed in (0, 1):
        trainer(tmp_path / str(seed), seed=seed).train()
    seeds = [s.generator.initial_seed() for s in steps]
    assert len(set(seeds)) == len(seeds) == 24


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        ({"gradient_clip": 0.5, "gradient_clip_mode": "value"}, "gradient_clip_mode", "value"),
        ({"gradient_clip": 0.5}, "gradient_clip", 0.5),
        ({"gradient_clip": None}, "gradient_clip", None),
        ({"mixed_precision": "bf16"}, "mixed_precision", "bf16"),
        ({"loss": denoising}, "loss", denoising),
    ],
)
def test_a_setting_reaches_the_step(tmp_path, steps, config, name, value):
    trainer(tmp_path, max_steps=1, **config).train()
    assert getattr(steps[0], name) == value


@pytest.mark.parametrize(
    ("precision", "half", "scaled"),
    [("no", False, False), ("bf16", False, False), ("fp16", False, True), ("no", True, True)],
)
def test_losses_are_scaled_wherever_gradients_are_in_fp16(tmp_path, steps, precision, half, scaled):
    unet = make_unet().half() if half else make_unet()
    trainer(tmp_path, unet=unet, mixed_precision=precision, max_steps=1).train()
    assert (steps[0].scaler is not None) is scaled


def test_a_network_of_any_dtype_is_trained_and_kept_in_fp32(tmp_path):
    result = trainer(tmp_path, make_net(torch.bfloat16), max_steps=1).train()
    for file in result.files:
        assert {p.dtype for p in hn.load_hypernetwork(file).parameters()} == {torch.float32}


@pytest.mark.parametrize("all_of_them", [False, True])
def test_weights_decay_by_the_learning_rate_times_the_weight_decay(tmp_path, all_of_them):
    nets = [make_net(layer_norm=True).double() for _ in range(3)]
    for net in nets:
        randomise(net, 0.1)
        net.load_state_dict(nets[0].state_dict())
    config = {"max_steps": 1, "decay_biases_and_norms": all_of_them}
    for number, decay in enumerate((0.0, 0.5)):
        trainer(tmp_path / str(number), nets[number], weight_decay=decay, **config).train()
    for start, without, decayed in zip(*(net.parameters() for net in (nets[2], *nets[:2])), strict=True):
        decays = start.ndim > 1 or all_of_them
        torch.testing.assert_close(decayed, without - 0.01 * 0.5 * start.float() * decays)


def test_a_log_row_has_its_epoch_and_the_mean_of_the_last_50_losses(tmp_path, steps):
    result = trainer(tmp_path, max_epochs=20).train()
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [step // 3 for step in range(60)]
    means = [sum(range(max(1, n - 49), n + 1)) / min(n, 50) for n in range(1, 61)]
    assert [float(row["mean_loss"]) for row in rows] == pytest.approx(means, rel=1e-5)
    assert result.loss == pytest.approx(means[-1])


def test_the_loss_scale_is_restored_at_resume(tmp_path, monkeypatch):
    from hnkernels.training import step

    scales = []

    def watched(net, *args, scaler, **options):
        scales.append(scaler.get_scale())
        hook = next(net.parameters()).register_hook(lambda g: g * float("inf")) if len(scales) == 2 else None
        metrics = step.take_step(net, *args, scaler=scaler, **options)
        if hook is not None:
            hook.remove()
            signal.raise_signal(signal.SIGINT)
        return metrics

    monkeypatch.setattr("hnkernels.training.run.take_step", watched)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, mixed_precision="fp16").train()
    trainer(tmp_path, mixed_precision="fp16", max_steps=3).train(resume=True)
    assert scales == [65536.0, 65536.0, 32768.0]  # halved by the second step, which overflowed


@pytest.mark.parametrize("before", [False, True])
def test_gradient_checkpointing_is_on_for_the_run_and_then_as_before(tmp_path, before, steps):
    job = trainer(tmp_path, gradient_checkpointing=True, max_steps=1)
    if before:
        job.unet.enable_gradient_checkpointing()
    job.callback = lambda step, metrics: seen.append(job.unet.is_gradient_checkpointing)
    seen = []
    job.train()
    assert seen == [True]
    assert job.unet.is_gradient_checkpointing is before


def test_previews_are_drawn_in_eval_mode_at_their_steps(tmp_path, steps, monkeypatch):
    seen = []

    def draw(model, config, path, adapter):
        seen.append((path.name, adapter.net.training))

    monkeypatch.setattr("hnkernels.training.run.write_preview", draw)
    job = trainer(tmp_path, max_steps=5)
    job.config = dataclasses.replace(job.config, preview_every=2, preview_prompts=("a",))
    job.net.train()
    job.train()
    assert seen == [("step-000002.png", False), ("step-000004.png", False)]


_OTHER = {
    "learning_rate": 2e-5, "batch_size": 2, "target_layers": ("attn1",), "gradient_accumulation_steps": 2,
    "gradient_clip": 0.5, "gradient_clip_mode": "value", "mixed_precision": "bf16", "weight_decay": 0.5,
    "latent_sampling": "random", "caption_template": "a [filewords]", "shuffle_tags": True, "tag_dropout": 0.5,
    "caption_dropout": 0.5, "resolution": 64, "seed": 1, "keep_tags": 1, "clip_skip": 2, "bucketing": True,
    "bucket_step": 32, "bucket_max_aspect": 3.0, "random_flip": True, "regularization_data": "x",
    "prior_loss_weight": 0.5, "masked_loss": True, "skip_broken": True, "loss_type": "huber", "huber_delta": 0.5,
    "snr_gamma": 5.0, "min_timestep": 1, "max_timestep": 7, "timestep_sampling": "uniform", "noise_offset": 0.1,
    "zero_terminal_snr": True, "optimizer": "sgd", "optimizer_args": {"eps": 1e-6},
    "learning_rate_factors": {"k": 2.0}, "decay_biases_and_norms": True, "ema_decay": 0.9, "validation_split": 0.5,
}  # fmt: skip
_OTHER_TOGETHER = {
    "mask_data": {"masked_loss": True}, "lr_scheduler": {}, "lr_warmup_steps": {"lr_scheduler": "cosine"},
    "lr_scheduler_args": {"lr_scheduler": "cosine"},
}  # fmt: skip
_MAY_DIFFER = {
    "output_dir": "x", "progress": False, "max_steps": 7, "max_epochs": 7, "checkpoint_every": 7,
    "gradient_checkpointing": True, "preview_every": 7, "preview_prompts": ("a",), "preview_conditions": ("ink",),
    "preview_inference_steps": 7, "preview_guidance": 2.0, "cache_dir": "x", "validate_every": 7, "trackers": ("x",),
}  # fmt: skip


def test_the_record_of_a_run_has_every_setting_of_a_step_and_no_other():
    names = _OTHER.keys() | _OTHER_TOGETHER.keys() | _MAY_DIFFER.keys()
    assert {field.name for field in dataclasses.fields(TrainingConfig)} == names
    unet = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    prompts = {"preview_prompts": ("b",)}
    then = run_record(TrainingConfig(**prompts), [], denoising, unet)
    for name, value in _OTHER.items():
        (found,) = differences(then, run_record(TrainingConfig(**{**prompts, name: value}), [], denoising, unet))
        assert found.startswith(f"{name} (")
    for name, others in _OTHER_TOGETHER.items():
        value = {"mask_data": "x", "lr_scheduler": "linear", "lr_warmup_steps": 5}.get(name, {"num_cycles": 2})
        configs = [TrainingConfig(**others, **more) for more in ({}, {name: value})]
        (found,) = differences(*(run_record(config, [], denoising, unet) for config in configs))
        assert found.startswith(f"{name} (")
    for name, value in _MAY_DIFFER.items():
        assert not differences(then, run_record(TrainingConfig(**{**prompts, name: value}), [], denoising, unet))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unet": SimpleNamespace(device=torch.device("cpu"), dtype=torch.float16)}, "dtype of the model"),
        ({"unet": SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)}, "device"),
        ({"loss": hn.training.Reconstruction()}, "loss"),
        ({"data": [{"latents": torch.zeros(2, dtype=torch.int32)}]}, "data"),  # the same bits
        ({"data": [{"latents": torch.zeros(1, 2)}]}, "data"),
        ({"data": [{"latents": torch.tensor([0.0, -0.0])}]}, "data"),
    ],
)
def test_the_record_of_a_run_has_its_model_loss_and_data(change, said):
    given = {
        "config": TrainingConfig(), "data": [{"latents": torch.zeros(2)}], "loss": denoising,
        "unet": SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32),
    }  # fmt: skip
    (found,) = differences(run_record(**given), run_record(**{**given, **change}))
    assert found.startswith(f"{said} (")


@pytest.mark.parametrize("how", ["bfloat16", "fp8 storage", "group offloading", "int8"])
def test_a_base_model_in_another_form_is_trained_on_as_well(tmp_path, how):
    unet = make_unet()
    plain = trainer(tmp_path / "plain", max_steps=3).train()
    if how == "bfloat16":
        unet = unet.to(torch.bfloat16)
    elif how == "fp8 storage":
        unet.to(torch.bfloat16).enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    elif how == "group offloading":
        if not hasattr(torch, "accelerator") or Version(diffusers.__version__) < Version("0.38"):
            pytest.skip("this version of diffusers wants an accelerator for it")
        unet.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    else:
        in_int8(unet)
    net, start = make_net(), make_net()
    result = trainer(tmp_path / "other", net, unet=unet, max_steps=3).train()
    assert result.losses == pytest.approx(plain.losses, rel=0.1)
    assert not any(torch.equal(a, b) for a, b in zip(net.parameters(), start.parameters(), strict=True))


def in_eight_bits():
    unet = make_unet().to(torch.bfloat16)
    unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    return unet


def test_weights_that_lie_in_eight_bits_have_the_gradients_of_the_same_weights_in_sixteen(tmp_path):
    rounded = make_unet().to(torch.bfloat16)
    for parameter, source in zip(rounded.parameters(), in_eight_bits().parameters(), strict=True):
        parameter.data = source.data.to(torch.bfloat16)
    nets = [make_net(), make_net()]
    for number, unet in enumerate((in_eight_bits(), rounded)):
        trainer(tmp_path / str(number), nets[number], unet=unet, max_steps=3).train()
    for cast, plain, start in zip(*(net.parameters() for net in (*nets, make_net())), strict=True):
        assert (cast - plain).norm() <= 0.02 * (plain - start).norm()


def test_layerwise_casting_and_gradient_checkpointing_are_refused_together(tmp_path):
    with pytest.raises(ValueError, match="gradient_checkpointing does not work with layerwise casting"):
        trainer(tmp_path, unet=in_eight_bits(), gradient_checkpointing=True)
