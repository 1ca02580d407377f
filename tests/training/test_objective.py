"""What is drawn for a step and how its error is weighed, by hand in float64."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

import hnkernels as hn
from hnkernels.training.noising import Diffusion, FlowMatching, noising_of
from hnkernels.training.objective import Objective
from tests.training.nets import make_net, make_rows, make_unet

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def generators(count=200):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def kept():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, 0).double()


@pytest.mark.parametrize(
    ("predicts", "weight"),
    [
        ("epsilon", lambda snr: torch.minimum(snr, torch.tensor(5.0)) / snr),
        ("v_prediction", lambda snr: torch.minimum(snr, torch.tensor(5.0)) / (snr + 1)),
        ("sample", lambda snr: torch.minimum(snr, torch.tensor(5.0))),
    ],
)
def test_min_snr_weights_are_those_of_the_paper(predicts, weight):
    noising = noising_of(DDPMScheduler(**BETAS, prediction_type=predicts))
    timesteps = torch.tensor([0, 100, 500, 999])
    snr = kept()[timesteps] / (1 - kept()[timesteps])
    torch.testing.assert_close(noising.min_snr_weights(timesteps, 5.0).double(), weight(snr), rtol=1e-3, atol=0)


def test_a_terminal_snr_of_zero_has_a_weight_that_is_a_number():
    noising = noising_of(DDPMScheduler(**BETAS, prediction_type="v_prediction"), zero_terminal_snr=True)
    last = torch.tensor([999])
    assert noising.signal_to_noise(last).item() == pytest.approx(0, abs=1e-6)
    assert noising.min_snr_weights(last, 5.0).isfinite()
    x, noise = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    torch.testing.assert_close(noising.noisy(x, noise, last), noise, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("loss_type", ["l2", "huber", "smooth_l1"])
@pytest.mark.parametrize("masked", [False, True])
def test_errors_by_hand(loss_type, masked):
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 4, 5).double()
    mask = torch.rand(2, 1, 4, 5) if masked else None
    found = Objective(loss_type=loss_type, huber_delta=0.4).errors(a, b, mask)
    d = (a - b).abs()
    each = {
        "l2": d**2,
        "huber": torch.where(d < 0.4, d**2 / 2, 0.4 * (d - 0.2)),
        "smooth_l1": torch.where(d < 0.4, d**2 / 0.8, d - 0.2),
    }[loss_type]
    weights = torch.ones_like(each) if mask is None else mask.double().expand_as(each)
    torch.testing.assert_close(found, (each * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3)))


def test_a_noise_offset_is_the_same_over_a_channel():
    plain, offset = (Objective(noise_offset=o).noise((4, 64, 64), generators(1)[0]) for o in (0.0, 0.5))
    difference = offset - plain
    assert difference.flatten(1).std(1).max() < 1e-6
    assert difference.mean((1, 2)).std() > 0.01
    many = torch.stack([Objective(noise_offset=0.5).noise((1, 2, 2), g) - Objective().noise((1, 2, 2), h)
                        for g, h in zip(generators(2000), generators(2000), strict=True)])  # fmt: skip
    assert many[:, 0, 0, 0].std().item() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("sampling", ["auto", "uniform", "logit_normal"])
@pytest.mark.parametrize("flow", [False, True])
def test_timesteps_lie_in_their_range_and_are_spread_as_said(sampling, flow):
    noising = FlowMatching({"shift": 3.0}) if flow else Diffusion(DDPMScheduler(**BETAS))
    objective = Objective(min_timestep=200, max_timestep=700, timestep_sampling=sampling)
    drawn = torch.stack([objective.timestep(noising, (4, 8, 8), g).double() for g in generators(3000)])
    assert 200 <= drawn.min() < 270  # the tails of a logit-normal are thin
    assert 670 < drawn.max() <= 700
    places = (drawn - 200) / 500
    middle = ((places > 0.25) & (places < 0.75)).double().mean().item()
    if sampling == "logit_normal":
        assert middle == pytest.approx(math.erf(math.log(3) / math.sqrt(2)), abs=0.03)  # P(|N| < logit 0.75)
    elif sampling == "uniform" or not flow:
        assert middle == pytest.approx(0.5, abs=0.03)
    else:  # logit-normal, and then shifted: its median is 3·½ / (1 + 2·½)
        assert places.median().item() == pytest.approx(0.75, abs=0.02)
    assert drawn.dtype == torch.float64
    assert flow or bool((drawn == drawn.round()).all())


def test_a_shift_by_size_is_the_models_own():
    config = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    noising = FlowMatching(config)
    assert noising.shift((16, 32, 32)) == pytest.approx(math.exp(0.5))  # 256 tokens
    assert noising.shift((16, 128, 128)) == pytest.approx(math.exp(1.15))  # 4096 tokens


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_timestep": 2000}, "max_timestep 2000; the model has timesteps from 0 to 1000"),
        ({"min_timestep": 1000}, "min_timestep is 1000 .*; the model has timesteps from 0 to 1000"),
        ({"timestep_sampling": "shifted"}, "'shifted' is for flow matching"),
        ({"zero_terminal_snr": True}, "zero_terminal_snr is for models that predict the velocity"),
        ({"optimizer": "adamx"}, "optimizer 'adamx' is not known; did you mean 'adam"),
        ({"optimizer": "AdamW8bit"}, "optimizer 'AdamW8bit' is not installed .*; pip install bitsandbytes"),
        ({"optimizer": "no.such.Optimizer"}, "'no.such.Optimizer' is not installed .*pip install no"),
        ({"optimizer": "torch.nn.Linear"}, "is not an optimiser"),
        ({"optimizer": "torch.optim.Nothing"}, "torch.optim has no Nothing"),
        ({"optimizer_args": {"beta": 1}}, r"optimizer 'adamw' with .*beta.* cannot be made"),
        ({"lr_scheduler": "cosin"}, "lr_scheduler 'cosin' is not known; did you mean 'cosine'"),
        ({"lr_scheduler": "cosine", "lr_scheduler_args": {"x": 1}}, "lr_scheduler 'cosine' .* cannot be made"),
        (
            {"learning_rate_factors": {"q": 2}},
            "learning_rate_factors has 'q'; this network has k, v, 8, 12, 16, attn1, attn2",
        ),
        ({"clip_skip": 2}, None),
        ({"validation_split": 5}, "holds out 5 of 5 pictures"),
        ({"trackers": "tensorbord"}, "trackers has the unknown 'tensorbord'; did you mean 'tensorboard'"),
    ],
    ids=str,
)
def test_settings_that_are_not_for_this_model_are_refused_before_anything_is_written(tmp_path, config, message):
    settings = {"output_dir": str(tmp_path / "run"), "progress": False, "max_steps": 1, **config}

    def train():
        hn.HypernetworkTrainer(make_net(), make_unet(), settings, make_rows()).train()

    if message is None:
        return train()
    with pytest.raises(ValueError, match=message):
        train()
    assert not (tmp_path / "run").exists() or {p.name for p in (tmp_path / "run").iterdir()} <= {"run.lock"}


def test_settings_for_diffusion_are_refused_for_flow_matching():
    noising = FlowMatching({})
    with pytest.raises(ValueError, match="snr_gamma is for diffusion models"):
        Objective(snr_gamma=5.0).check(noising)
    with pytest.raises(ValueError, match="zero_terminal_snr is for diffusion models"):
        noising_of(FlowMatchEulerDiscreteScheduler(), zero_terminal_snr=True)
    Objective(timestep_sampling="shifted").check(noising)
