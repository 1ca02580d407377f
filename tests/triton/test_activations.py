"""Device code of the activations and their derivatives against torch in float64, beside torch in fp32."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.network.activations import ACTIVATIONS
from hnkernels.triton.kernels.activations import activate, derivative
from tests.marks import earlier
from tests.models import relative_error

NAMES = [row.name for row in ACTIVATIONS.values() if row.device is not None]
KINKS = (-3.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 3.0, 6.0)
SLOPE = 0.25  # what torch starts prelu with

# Some operations round to half an ulp, 6e-8, each; a few in a row make this. A derivative has one or two more.
VALUE_FLOOR = 2e-7
DERIVATIVE_FLOOR = 3e-7


@triton.jit
def _kernel(
    x_ptr, y_ptr, slope_ptr, N, ALPHA: tl.constexpr, ACT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < N, other=0.0)
    tl.store(y_ptr + at, activate(x, ALPHA, ACT), mask=at < N)
    tl.store(slope_ptr + at, derivative(x, ALPHA, ACT), mask=at < N)


def ours(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The device's values and derivatives."""
    y, slope = torch.empty_like(x), torch.empty_like(x)
    block = triton.next_power_of_2(x.numel())
    _kernel[(1,)](x, y, slope, x.numel(), ALPHA=SLOPE, ACT=ACTIVATIONS[name].device, BLOCK=block)
    return y, slope


def torchs(name: str, x: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """PyTorch's."""
    x = x.to(dtype).requires_grad_()
    y = ACTIVATIONS[name].build().to(dtype)(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


@pytest.mark.parametrize("scale", [1e-3, 0.1, 3.0, 30.0])
@pytest.mark.parametrize("name", NAMES)
def test_as_accurate_as_torch_in_fp32(name, scale):
    x = torch.randn(4000) * scale
    exact, eager = torchs(name, x), torchs(name, x, torch.float32)
    for mine, theirs, truth, floor in zip(ours(name, x), eager, exact, (VALUE_FLOOR, DERIVATIVE_FLOOR), strict=True):
        assert relative_error(mine, truth) <= max(floor, 1.5 * relative_error(theirs, truth))


@pytest.mark.parametrize("name", NAMES)
def test_no_value_strays_where_the_pieces_meet(name):
    x = torch.linspace(-20.0, 20.0, 8001)
    for mine, theirs in zip(ours(name, x), torchs(name, x), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_kinks_have_torchs_subgradients(name):
    if name in ("hardswish", "swish") and earlier("torch", (2, 8)):
        pytest.skip("PyTorch 2.6 and 2.7 have other subgradients there")
    x = torch.tensor(KINKS)
    for mine, theirs in zip(ours(name, x), torchs(name, x), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-6, atol=1e-7)  # a few roundings in fp32


@pytest.mark.parametrize("name", NAMES)
def test_no_value_is_lost_where_exp_overflows_or_vanishes(name):
    x = torch.tensor([-1e37, -1e4, -150.0, -90.0, 90.0, 150.0, 1e4, 1e37])
    for mine, theirs in zip(ours(name, x), torchs(name, x), strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-6, atol=1e-30)  # atol: subnormals may be flushed


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_pass_as_in_torch(name):
    x = torch.tensor([float("nan"), float("inf"), float("-inf")])
    torch.testing.assert_close(
        ours(name, x)[0].double(), torchs(name, x)[0], rtol=1e-6, atol=1e-7, equal_nan=True
    )  # fmt: skip
