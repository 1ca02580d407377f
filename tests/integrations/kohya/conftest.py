"""A small UNet for the module for kohya's trainers, and what it is called with."""

import pytest
import torch

from tests.adapter.hosts import OriginalUNet
from tests.integrations.kohya.trainer import KINDS, TEXT_WIDTH


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return OriginalUNet().requires_grad_(False)


@pytest.fixture
def x():
    return torch.randn(2, 4, 3, 3)


@pytest.fixture
def text():
    return torch.randn(2, 5, TEXT_WIDTH)


@pytest.fixture(params=KINDS)
def arguments(request):
    """``--network_args`` for each kind of network."""
    return KINDS[request.param]
