"""The denoising error against hand computations, with a model that answers what a test wants."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler

from hnkernels.training.families.stable_diffusion import StableDiffusion
from hnkernels.training.losses import Mixture, Penalty, Process, Reconstruction, Step, denoising
from hnkernels.training.noising import noising_of
from hnkernels.training.objective import DEFAULT
from tests.models import TEXT_WIDTH, randomise
from tests.training.nets import make_unet
from tests.training.test_weights import lora_of, make_gen


class Recorder:
    """A UNet that answers 0 and remembers what it was asked."""

    device = torch.device("cpu")

    def __init__(self, dtype=torch.float32, answer=0.0):
        self.dtype, self.answer, self.noisy, self.timesteps = dtype, answer, [], []

    def __call__(self, noisy, timesteps, encoder_hidden_states):
        self.noisy.append(noisy)
        self.timesteps += timesteps.tolist()
        return SimpleNamespace(sample=torch.full_like(noisy, self.answer))


def ask(unet, seed=0, rows=64, scheduler=None, objective=DEFAULT, **given):
    data = {"latents": torch.zeros(rows, 4, 2, 2), "encoder_hidden_states": torch.zeros(rows, 1, 3), **given}
    generator = torch.Generator().manual_seed(seed)
    noising = noising_of(scheduler or DDPMScheduler(num_train_timesteps=4))
    process = Process(StableDiffusion(unet), noising, objective)
    return denoising(Step(unet, None, data, generator, None, process))


def test_every_timestep_of_the_schedule_is_drawn_for_every_row_by_itself():
    unet = Recorder()
    ask(unet)
    assert set(unet.timesteps) == {0, 1, 2, 3}


def test_noise_and_timesteps_come_from_the_generator_alone():
    unet, seen = Recorder(), []
    for seed, program in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(program)
        ask(unet, seed)
        seen.append((unet.noisy[-1], unet.timesteps[-64:]))
    assert torch.equal(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1]
    assert not torch.equal(seen[0][0], seen[2][0])
    assert seen[0][1] != seen[2][1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_error_of_a_half_precision_model_is_summed_in_fp32(dtype):
    noise = torch.randn(64, 4, 2, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    loss = ask(Recorder(dtype, 300.0), noise=noise)  # squares that fp16 does not hold
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx((300 - noise.double()).square().mean().item(), rel=1e-6)


@pytest.fixture(scope="module")
def generated():
    """Weights of two conditions, and LoRAs of very different sizes that they are to become."""
    gen = make_gen(make_unet(), embedding_dim=TEXT_WIDTH)
    torch.manual_seed(3)
    randomise(gen, 0.2)
    with torch.no_grad():
        weights = gen(["ink", "oil"]).scaled({"attn2": 0.5})
        small = {key: t * 0.1 for key, t in lora_of(gen, "oil").items()}
        return weights, [lora_of(gen, "ink"), small]


def test_reconstruction_is_the_mean_over_the_batch_of_the_relative_errors(generated):
    weights, loras = generated
    expected = []
    for row, lora in enumerate(loras):
        errors = sizes = 0.0
        for layer in weights.layers:
            a, b = (lora[f"unet.{layer.name}.lora_{side}.weight"].double() for side in "AB")
            errors += (weights.dense(layer.name)[row].double() - b @ a).square().sum().item()
            sizes += (b @ a).square().sum().item()
        expected.append(errors / sizes)
    loss = Reconstruction()(Step(None, None, {"lora": loras}, None, weights))
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_a_penalty_and_a_mixture_weigh_their_parts(generated):
    weights, loras = generated
    step = Step(None, None, {"lora": loras}, None, weights)
    l1, l2 = Penalty(l1=1.0)(step), Penalty(l2=1.0)(step)
    factors = [t for layer in weights.layers for t in weights.factors(layer.name)]
    changes = [weights.dense(layer.name) for layer in weights.layers]
    assert l1.item() == pytest.approx(torch.cat([t.flatten() for t in factors]).abs().mean().item(), rel=1e-5)
    assert l2.item() == pytest.approx(torch.cat([t.flatten() for t in changes]).square().mean().item(), rel=1e-4)
    both = Penalty(l1=2.0, l2=3.0)(step)
    assert both.item() == pytest.approx((2 * l1 + 3 * l2).item(), rel=1e-5)
    mixed = Mixture((0.5, Penalty(l1=1.0)), (4.0, Reconstruction()))(step)
    assert mixed.item() == pytest.approx((0.5 * l1 + 4 * Reconstruction()(step)).item(), rel=1e-5)
