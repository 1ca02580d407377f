"""One optimiser step."""

import math

import pytest
import torch

import hnkernels as hn
from hnkernels.training.step import frozen
from tests.training.nets import make_batch, make_net, make_unet

pytestmark = pytest.mark.on_device


def parameters(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def unchanged(before, module):
    return all(torch.equal(before[name], p) for name, p in module.named_parameters())


def step(net, unet, batch, lr=1e-2, **options):
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    return hn.train_hypernetwork(net, unet, batch, optimizer, **options)


def test_the_network_learns_and_the_model_stays():
    net, unet = make_net(), make_unet()
    base = parameters(unet)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = [hn.train_hypernetwork(net, unet, make_batch(), optimizer)["loss"] for _ in range(20)]
    assert losses[-1] < losses[0]
    assert unchanged(base, unet)
    assert all(p.grad is None for p in unet.parameters())
    assert all(p.requires_grad for p in unet.parameters())
    assert not [m for m in unet.modules() if "forward" in m.__dict__]


def test_an_attached_network_stays_attached():
    net, unet = make_net(), make_unet()
    adapter = hn.attach(unet, net)
    step(net, unet, make_batch())
    assert adapter.attached


def test_accumulated_micro_batches_give_the_gradient_of_the_whole():
    whole = make_batch(rows=4)
    parts = [{key: value[:1] for key, value in whole.items()}, {key: value[1:] for key, value in whole.items()}]
    nets = [make_net(dtype=torch.float64) for _ in range(2)]
    unet = make_unet().double()
    for net, batch in zip(nets, (whole, parts), strict=True):
        step(net, unet, batch, lr=0.0)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("mode", "bound"), [("norm", 1e-3), ("value", 1e-4)])
def test_the_gradient_is_clipped(mode, bound):
    net = make_net()
    metrics = step(net, make_unet(), make_batch(), gradient_clip=bound, gradient_clip_mode=mode)
    gradients = torch.cat([p.grad.flatten() for p in net.parameters()])
    largest = gradients.norm() if mode == "norm" else gradients.abs().max()
    assert metrics["grad_norm"] > bound
    assert largest <= bound * (1 + 1e-4)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    net, unet, batch = make_net(), make_unet(), make_batch()
    before = parameters(net)
    if bad == "loss":
        batch["latents"] = batch["latents"] * math.nan
    else:
        next(iter(net.parameters())).register_hook(lambda g: g * math.inf)
    metrics = step(net, unet, batch)
    assert metrics["updated"] == 0.0
    assert not math.isfinite(metrics["loss" if bad == "loss" else "grad_norm"])
    assert unchanged(before, net)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_comes_close_to_full(precision):
    norms = []
    for option in ("no", precision):
        net = make_net()
        scaler = torch.amp.GradScaler(torch.get_default_device().type) if option == "fp16" else None
        norms.append(step(net, make_unet(), make_batch(), mixed_precision=option, scaler=scaler)["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.1)  # 8 bits of mantissa through a UNet; unscaled, not 65536 times


def test_the_gradient_is_unscaled_before_it_is_clipped():
    net = make_net()
    scaler = torch.amp.GradScaler(torch.get_default_device().type, init_scale=1024.0)
    step(net, make_unet(), make_batch(), mixed_precision="fp16", scaler=scaler, gradient_clip=1e-3)
    assert torch.cat([p.grad.flatten() for p in net.parameters()]).norm() <= 1e-3 * (1 + 1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_follows_the_prediction_type(kind):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type=kind)
    batch = make_batch()
    unet, net = make_unet(), make_net()
    loss = step(net, unet, batch, noise_scheduler=scheduler)["loss"]
    noisy = scheduler.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    with torch.no_grad():
        prediction = unet(noisy, batch["timesteps"], batch["encoder_hidden_states"]).sample  # the net starts at 0
    target = {
        "epsilon": batch["noise"],
        "v_prediction": scheduler.get_velocity(batch["latents"], batch["noise"], batch["timesteps"]),
        "sample": batch["latents"],
    }[kind]
    assert loss == pytest.approx((prediction - target).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("missing", ["latents", "encoder_hidden_states"])
def test_a_batch_that_lacks_something_is_refused(missing):
    batch = make_batch()
    del batch[missing]
    with pytest.raises(ValueError, match=f"batch needs '{missing}'"):
        step(make_net(), make_unet(), batch)


def test_frozen_gives_back_what_it_took():
    unet = make_unet()
    flags = [i % 2 == 0 for i, _ in enumerate(unet.parameters())]
    for flag, p in zip(flags, unet.parameters(), strict=True):
        p.requires_grad_(flag)

    def fail_inside():
        with frozen(unet):
            assert not any(p.requires_grad for p in unet.parameters())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert [p.requires_grad for p in unet.parameters()] == flags
