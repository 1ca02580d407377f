"""Linears through oneDNN: the numbers of ``F.linear``, and ``F.linear`` itself wherever it does not apply."""

import functools

import pytest
import torch
import torch.nn.functional as F

from hnkernels.network.activations import ACTIVATIONS
from hnkernels.ops import onednn, portable
from tests.models import FORWARD_TOLERANCE, GRADIENT_TOLERANCE, relative_error

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN, so nothing is ever packed"
)


project = functools.partial(portable.project, few_rows=True)


@pytest.fixture(autouse=True)
def _any_size(monkeypatch):
    monkeypatch.setattr(onednn, "LEAST_ELEMENTS", 0)
    onednn.forget()


@pytest.fixture
def packs(monkeypatch):
    """The weights that were packed since the test began."""
    made = []
    packing = onednn._packing

    def count(weight, transposed):
        pack = packing(weight, transposed)
        return lambda: made.append(weight) or pack()

    monkeypatch.setattr(onednn, "_packing", count)
    return made


def exact(x, weight, bias):
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (77,), (2, 77), (2, 3, 5), ()])
def test_it_is_the_linear(shape, bias, packs):
    x, weight, b = torch.randn(*shape, 24), torch.randn(20, 24), torch.randn(20) if bias else None
    y = project(x, weight, b)
    assert y.shape == (*shape, 20)
    assert relative_error(y, exact(x, weight, b)) <= FORWARD_TOLERANCE
    assert len(packs) == 1


@pytest.mark.parametrize("layout", ["transposed", "expanded", "strided"])
def test_it_takes_any_memory_layout(layout):
    x = {"transposed": torch.randn(24, 7).t(), "expanded": torch.randn(1, 24).expand(7, 24),
         "strided": torch.randn(7, 48)[:, ::2]}[layout]  # fmt: skip
    weight = torch.randn(24, 20).t()
    assert relative_error(project(x, weight, None), exact(x, weight, None)) <= FORWARD_TOLERANCE


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_flow_to_x(bias, packs):
    x, weight, b = torch.randn(3, 5, 24, requires_grad=True), torch.randn(20, 24), torch.randn(20) if bias else None
    upstream = torch.randn(3, 5, 20)
    y = project(x, weight, b)
    first, second = (torch.autograd.grad(y, x, upstream, retain_graph=True)[0] for _ in range(2))
    assert relative_error(first, upstream.double() @ weight.double()) <= GRADIENT_TOLERANCE
    assert torch.equal(first, second)
    assert len(packs) == 2  # the weight and its transpose
    project(x, weight, b)
    assert len(packs) == 2


def test_an_expanded_upstream_gradient():
    x, weight = torch.randn(3, 24, requires_grad=True), torch.randn(20, 24)
    project(x, weight, None).sum().backward()
    assert relative_error(x.grad, torch.ones(3, 20).double() @ weight.double()) <= GRADIENT_TOLERANCE


def test_second_derivatives_are_right():
    x, weight = torch.randn(3, 24), torch.randn(20, 24)

    def second(linear, dtype):
        t = x.to(dtype).requires_grad_()
        (first,) = torch.autograd.grad(linear(t, weight.to(dtype), None).pow(3).sum(), t, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), t)[0]

    # Three times the depth of a gradient, each step with the gradient's own rounding.
    assert relative_error(second(project, torch.float32), second(F.linear, torch.float64)) <= 3 * GRADIENT_TOLERANCE


def test_a_changed_weight_is_packed_again(packs):
    x, weight = torch.randn(3, 24), torch.randn(20, 24)
    project(x, weight, None)
    weight.mul_(2)
    assert relative_error(project(x, weight, None), exact(x, weight, None)) <= FORWARD_TOLERANCE
    other = torch.randn(20, 24)
    assert relative_error(project(x, other, None), exact(x, other, None)) <= FORWARD_TOLERANCE
    assert len(packs) == 3


def test_packing_in_inference_mode_serves_autograd_later():
    x, weight = torch.randn(3, 24), torch.randn(20, 24)
    with torch.inference_mode():
        project(x, weight, None)
    x.requires_grad_()
    project(x, weight, None).sum().backward()
    assert relative_error(x.grad, torch.ones(3, 20).double() @ weight.double()) <= GRADIENT_TOLERANCE


class Subclass(torch.Tensor):
    """A weight that is not just its numbers, as quantised ones are."""


@pytest.mark.parametrize(
    "case", ["small", "no rows", "float64", "bfloat16", "trains", "bias trains", "subclass", "no oneDNN"]
)
def test_elsewhere_it_is_f_linear_bit_for_bit(case, packs, monkeypatch):
    x, weight, bias = torch.randn(5, 8), torch.randn(6, 8), torch.randn(6)
    if case == "small":
        monkeypatch.setattr(onednn, "LEAST_ELEMENTS", 49)
    elif case == "no rows":
        x = torch.randn(0, 8)
    elif case in ("float64", "bfloat16"):
        x, weight, bias = (t.to(getattr(torch, case)) for t in (x, weight, bias))
    elif case == "trains":
        weight.requires_grad_()
    elif case == "bias trains":
        bias.requires_grad_()
    elif case == "subclass":
        weight = weight.as_subclass(Subclass)
    elif case == "no oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert torch.equal(project(x, weight, bias), F.linear(x, weight, bias))
    assert not packs


def test_under_autocast_it_is_f_linear(packs):
    x, weight = torch.randn(5, 8), torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = project(x, weight, None)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, F.linear(x, weight))
    assert not packs


def test_a_trained_weight_gets_its_gradient():
    x, weight = torch.randn(5, 8), torch.randn(6, 8, requires_grad=True)
    project(x, weight, None).sum().backward()
    assert weight.grad is not None


def test_forward_mode_differentiation_keeps_its_tangent():
    import torch.autograd.forward_ad as forward_ad

    weight, x, tangent = torch.randn(6, 4), torch.randn(3, 4), torch.randn(3, 4)
    with forward_ad.dual_level():
        y = project(forward_ad.make_dual(x, tangent), weight, None)
        assert torch.equal(forward_ad.unpack_dual(y).tangent, tangent @ weight.t())


def test_torch_func_goes_through():
    weight, x = torch.randn(6, 4), torch.randn(3, 4)
    gradient = torch.func.grad(lambda t: project(t, weight, None).sum())(x)
    torch.testing.assert_close(gradient, weight.sum(0).expand(3, 4))


@pytest.mark.parametrize("name", [row.name for row in ACTIVATIONS.values() if row.onednn])
@pytest.mark.parametrize("trainable", [True, False])
def test_activations_in_the_epilogue_are_the_modules(name, trainable, packs):
    x, weight, bias = torch.randn(7, 24), torch.randn(20, 24, requires_grad=trainable), torch.randn(20)
    row = ACTIVATIONS[name]
    with torch.no_grad():
        y = onednn.linear(x, weight, bias, row.onednn)
        assert relative_error(y, row.build()(exact(x, weight, bias))) <= FORWARD_TOLERANCE
    assert len(packs) == (0 if trainable else 1)


def test_a_residual_is_added_in_the_epilogue():
    x, weight, bias, residual = torch.randn(7, 24), torch.randn(20, 24), torch.randn(20), torch.randn(7, 20)
    before = residual.clone()
    y = onednn.linear(x, weight, bias, residual=residual)
    assert relative_error(y, exact(x, weight, bias) + residual.double()) <= FORWARD_TOLERANCE
    assert torch.equal(residual, before)


def test_a_weight_that_may_train_is_never_packed(packs):
    """A fused optimiser changes it without a trace in its version; a packed copy would be stale."""
    x, weight = torch.randn(7, 24), torch.randn(20, 24, requires_grad=True)
    with torch.no_grad():
        project(x, weight, None)
        weight.data.mul_(2)  # no trace either
        assert relative_error(project(x, weight, None), exact(x, weight, None)) <= FORWARD_TOLERANCE
    assert not packs


def test_packed_weights_go_with_the_weight(packs):
    weight = torch.randn(20, 24)
    project(torch.randn(3, 24), weight, None)
    assert len(onednn._packs) == 1
    packs.clear()
    del weight
    assert len(onednn._packs) == 0


def test_a_recorded_pass_over_many_rows_packs_nothing(packs):
    x, weight = torch.randn(7, 24, requires_grad=True), torch.randn(20, 24)
    y = portable.project(x, weight, None)
    assert torch.equal(y, F.linear(x, weight))
    assert not packs
