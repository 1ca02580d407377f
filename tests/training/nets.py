"""Small networks and batches for the training tests."""

import torch

import hnkernels as hn
from hnkernels.training.step import Taken
from tests.models import TEXT_WIDTH, TOKENS, WIDTHS, tiny_unet


def make_unet():
    torch.manual_seed(0)
    return tiny_unet().requires_grad_(True)


def make_net(dtype=torch.float32, **options):
    torch.manual_seed(1)
    return hn.Hypernetwork((*WIDTHS, TEXT_WIDTH), **{"init": "identity", **options}).to(dtype)


def make_batch(rows=2):
    generator = torch.Generator().manual_seed(2)
    return {
        "latents": torch.randn(rows, 4, 4, 4, generator=generator),
        "noise": torch.randn(rows, 4, 4, 4, generator=generator),
        "timesteps": torch.randint(1000, (rows,), generator=generator),
        "encoder_hidden_states": torch.randn(rows, TOKENS, TEXT_WIDTH, generator=generator),
    }


def taken(loss):
    """A step of this loss that was taken."""
    return Taken(torch.tensor(float(loss)), torch.tensor(1.0), torch.tensor(True), torch.tensor(0.0))


def make_rows(count=5):
    batch = make_batch(count)
    return [{key: batch[key][i] for key in ("latents", "encoder_hidden_states")} for i in range(count)]
