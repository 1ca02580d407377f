"""The gradients of every autograd function by finite differences, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hnkernels.triton.ops.grouped import run_grouped_linear
from hnkernels.triton.ops.linear import run_linear
from hnkernels.triton.ops.mlp import Structure, run_mlps

ROWS, WIDTH, HIDDEN = 3, 2, 3


@dataclass(frozen=True)
class Net:
    """The kinds of layers that take different paths through the kernels."""

    structure: Structure
    widths: tuple[int, ...] = (WIDTH, HIDDEN, WIDTH)

    def parameters(self) -> list[Tensor]:
        """Those of one stream, in the operators' order."""
        drawn = []
        for layer, n, k in zip(self.structure.layers(), self.widths[1:], self.widths, strict=False):
            drawn += [draw(n, k), draw(n)]
            drawn += [draw(1)] if layer.act == "prelu" else []
            drawn += [draw(n), draw(n)] if layer.norm else []
        return drawn


def net(act: str, last: bool = False, norm: bool = False, dropouts: tuple[float, ...] = (0.0, 0.0)) -> Net:
    return Net(Structure(act, (True, last), (norm, norm), dropouts))


NETS = {
    "affine": net("linear"),
    "output serves": net("relu"),
    "smooth": net("silu"),
    "activated output": net("tanh", last=True),
    "prelu": net("prelu"),
    "prelu, activated output": net("prelu", last=True),
    "norms": net("silu", norm=True),
    "norms, activated output": net("gelu", last=True, norm=True),
    "norms, prelu everywhere": net("prelu", last=True, norm=True),
    "dropout": net("silu", dropouts=(0.4, 0.4)),
    "dropout, output serves": net("relu", dropouts=(0.4, 0.0)),
    "dropout without activation": net("linear", dropouts=(0.4, 0.0)),
    "dropout, prelu": net("prelu", last=True, dropouts=(0.4, 0.4)),
    "dropout, norms": net("silu", norm=True, dropouts=(0.4, 0.4)),
    "one linear": Net(Structure("linear", (False,), (False,), (0.0,)), (WIDTH, WIDTH)),
    "one layer": Net(Structure("silu", (True,), (True,), (0.4,)), (WIDTH, WIDTH)),
    "three layers": Net(
        Structure("silu", (True, True, False), (False, True, False), (0.0, 0.0, 0.0)), (WIDTH, 3, 2, WIDTH)
    ),
}  # fmt: skip


def draw(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64).requires_grad_()


def check(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, unused: bool = True) -> None:
    """With ``unused`` also where some outputs are not used, and have no upstream gradient."""
    # Along random directions, in which any wrong entry shows; entry by entry takes the interpreter minutes.
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True, check_undefined_grad=unused)


def check_mlps(name: str, inputs: int, streams: int, query: bool = False, recompute: bool = False) -> None:
    """With ``inputs`` contexts for the streams."""
    structure = NETS[name].structure
    seed = torch.tensor([1234567]) if any(structure.dropouts) else None
    parameters = [p for _ in range(streams) for p in NETS[name].parameters()]
    query = [draw(2, WIDTH), draw(2)] if query else []

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, q, flat = tensors[:inputs], tensors[inputs : inputs + len(query)], tensors[inputs + len(query) :]
        return run_mlps(
            x, flat, structure, (1.0, -0.7)[:streams], out_dtype=torch.float64, seed=seed,
            query=(q[0], q[1]) if query else None, recompute=recompute,
        )  # fmt: skip

    check(
        function, *(draw(ROWS, WIDTH) for _ in range(inputs)), *query, *parameters, unused=name in ("smooth", "norms")
    )


@pytest.mark.parametrize("name", NETS)
def test_k_and_v_from_one_context(name):
    check_mlps(name, inputs=1, streams=2)


@pytest.mark.parametrize("name", ["smooth", "norms", "prelu", "one linear"])
def test_k_and_v_from_a_context_each(name):
    check_mlps(name, inputs=2, streams=2)


@pytest.mark.parametrize("name", ["smooth", "norms", "prelu", "one linear", "dropout, norms"])
def test_a_single_stream(name):
    check_mlps(name, inputs=1, streams=1)


@pytest.mark.parametrize("name", ["output serves", "norms", "one layer"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_query_along_with_k_and_v(name, recompute):
    check_mlps(name, inputs=1, streams=2, query=True, recompute=recompute)


@pytest.mark.parametrize("name", NETS)
def test_with_everything_computed_again(name):
    check_mlps(name, inputs=1, streams=2, recompute=True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "streams"), [(1, 2), (2, 2), (1, 1)])
@pytest.mark.parametrize("trained", [False, True])
def test_projections(inputs, streams, bias, trained):
    widths = (3, 5)[:streams]
    tensors = [draw(ROWS, WIDTH) for _ in range(inputs)]
    tensors += [draw(n, WIDTH).requires_grad_(trained) for n in widths]
    tensors += [draw(n).requires_grad_(trained) for n in widths if bias]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return run_linear(
            tensors[:inputs], tensors[inputs : inputs + streams], tensors[inputs + streams :]
        )  # fmt: skip

    check(function, *tensors)


@pytest.mark.parametrize("bias", [False, True])
def test_frozen_projections_of_many_layers(bias):
    widths = (3, 5, 2)
    w = [draw(n, WIDTH).detach() for n in widths]
    b = [draw(n).detach() for n in widths] if bias else []
    check(lambda k, v: run_grouped_linear((k, v), w, b, (0, 1, 1)), draw(ROWS, WIDTH), draw(ROWS, WIDTH))
