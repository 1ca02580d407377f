"""Every public operation under ``torch.compile``, as one graph: the values and gradients of the same call without it.

A version of PyTorch that traces an operation's backward pass wrongly gives zeros without a word; so this belongs to
what is tried with every version.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hnkernels as hn
from tests.models import GRADIENT_TOLERANCE, make_mlp, relative_error

pytestmark = pytest.mark.on_device


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def draw(*size: int) -> Tensor:
    return torch.randn(size, requires_grad=True)


def mlps(train=False):
    return [make_mlp(8, activation="silu", layer_norm=True).train(train) for _ in "kv"]


def parameters(*modules):
    return [p for module in modules for p in module.parameters()]


def hyper_context(train=False):
    x, (mlp, other) = draw(2, 5, 8), mlps(train)
    return (lambda: (hn.hyper_context(x, [mlp, other], strength=(0.5, 1)),)), [x, *parameters(mlp, other)]


def hyper_kv(train=False):
    x, (k, v), w_k, w_v, b_k = draw(2, 5, 8), mlps(train), draw(6, 8), draw(7, 8), draw(6)
    return (lambda: hn.hyper_kv(x, k, v, w_k, w_v, b_k, strength=0.5)), [x, w_k, w_v, b_k, *parameters(k, v)]


def hyper_qkv(train=False):
    x, (k, v), w_q, w_k, w_v = draw(2, 5, 8), mlps(train), draw(5, 8), draw(6, 8), draw(7, 8)
    return (lambda: hn.hyper_qkv(x, k, v, w_q, w_k, w_v)), [x, w_q, w_k, w_v, *parameters(k, v)]


def lowrank_linear(frozen=False, scale="each", index=None):
    x, weight, bias, sets = draw(4, 5, 12), draw(9, 12), draw(9), 4 if index is None else 3
    a, b = draw(sets, 3, 12), draw(sets, 9, 3)
    scale = {"each": draw(4), "some": torch.tensor([0.5, 0, 0, 1]), "none": None, "number": 0.5}[scale]
    inputs = [t for t in (x, weight, bias, a, b, scale) if isinstance(t, Tensor) and t.requires_grad]
    if frozen:
        weight.requires_grad_(False)
        inputs.pop(1)
    return (lambda: (hn.lowrank_linear(x, weight, a, b, scale, bias, index=index),)), inputs


def lowrank_linears():
    x, weights = draw(2, 5, 12), [draw(9, 12), draw(7, 12)]
    a, b = [draw(2, 3, 12), draw(2, 2, 12)], [draw(2, 9, 3), draw(2, 7, 2)]
    return (lambda: hn.lowrank_linears(x, weights, a, b, 0.5)), [x, *weights, *a, *b]


def lowrank_add():
    base, x, a, b, scale = draw(2, 5, 9), draw(2, 5, 12), draw(2, 3, 12), draw(2, 9, 3), draw(2)
    return (lambda: (hn.lowrank_add(base, x, a, b, scale),)), [base, x, a, b, scale]


CASES = {
    "hyper_context": hyper_context,
    "hyper_context in training": lambda: hyper_context(train=True),
    "hyper_kv": hyper_kv,
    "hyper_kv in training": lambda: hyper_kv(train=True),
    "hyper_qkv": hyper_qkv,
    "hyper_qkv in training": lambda: hyper_qkv(train=True),
    "lowrank_linear": lowrank_linear,
    "lowrank_linear, frozen weight": lambda: lowrank_linear(frozen=True),
    "lowrank_linear, some samples not at all": lambda: lowrank_linear(scale="some"),
    "lowrank_linear, one scale": lambda: lowrank_linear(scale="number"),
    "lowrank_linear, no scale": lambda: lowrank_linear(scale="none"),
    "lowrank_linear, an index": lambda: lowrank_linear(index=torch.tensor([2, 0, 0, 1])),
    "lowrank_linears": lowrank_linears,
    "lowrank_add": lowrank_add,
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("case", CASES)
def test_compiled_operations_give_the_same_values_and_gradients(case, backend):
    call, inputs = CASES[case]()

    def results(call):
        outputs = call()
        torch.manual_seed(0)
        return [*outputs, *torch.autograd.grad(outputs, inputs, [torch.randn_like(y) for y in outputs])]

    compiled = results(torch.compile(call, fullgraph=True, backend=backend))
    # The same kernels run; but PyTorch's decomposed LayerNorm backward, say, may sum in another order.
    for ours, expected in zip(compiled, results(call), strict=True):
        assert expected.any()
        assert relative_error(ours, expected) <= GRADIENT_TOLERANCE
