"""The operators as PyTorch sees them: schemas, fake tensors, tracing; and which gradients they compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hnkernels import hyper_kv, hyper_qkv
from hnkernels.triton.kernels import arguments
from hnkernels.triton.launch import recording
from hnkernels.triton.ops.mlp import Structure  # and registers torch.ops.hnkernels
from tests.marks import earlier
from tests.models import GRADIENT_TOLERANCE, make_mlp, relative_error

pytestmark = pytest.mark.on_device

ROWS, WIDTH, OUT = 5, 8, 6


def permuted(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random data whose last dimension is not the contiguous one."""
    return torch.randn(shape[::-1], dtype=dtype).t()


def parameters(activation: str = "silu", layer_norm: bool = False, layout=lambda t: t) -> list[Tensor]:
    return [
        layout(p.detach())
        for _ in "kv"
        for p in make_mlp(WIDTH, activation=activation, layer_norm=layer_norm).parameters()
    ]


def structure(activation: str = "silu", layer_norm: bool = False, dropout: float = 0.0) -> tuple:
    return activation, [True, False], [layer_norm] * 2, [dropout, 0.0]


def strided(t: Tensor) -> Tensor:
    return t.t().contiguous().t() if t.ndim == 2 else torch.stack([t, t], dim=-1)[..., 0]


X = {"contiguous": torch.randn, "permuted": permuted}
LAYOUTS = {"contiguous": lambda t: t, "permuted": strided}


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("streams_x", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("strength", [None, (0.3, 1.5)])
def test_the_mlp_operators(layout, layer_norm, streams_x, dropout, strength):
    x = [X[layout](ROWS, WIDTH) for _ in range(streams_x)]
    weights = parameters(layer_norm=layer_norm, layout=LAYOUTS[layout])
    seed = torch.tensor([7]) if dropout else None
    strength = None if strength is None else torch.tensor(strength)
    query = (LAYOUTS[layout](torch.randn(OUT, WIDTH)), torch.randn(OUT)) if streams_x == 1 else (None, None)
    spec = structure(layer_norm=layer_norm, dropout=dropout)
    forward = (x, [], weights, [], seed, *query, *spec, [0.5, 0.7], strength, torch.float32, True)
    torch.library.opcheck(torch.ops.hnkernels.mlp_forward, forward)
    results = torch.ops.hnkernels.mlp_forward(*forward)
    outs = 2 + (query[0] is not None)
    dq = X[layout](ROWS, OUT) if query[0] is not None else None
    for saved in (results[outs:], []):  # an empty list asks for recomputation
        backward = (
            [X[layout](ROWS, WIDTH), torch.randn(ROWS, WIDTH)], dq, x, weights, saved, seed, query[0], *spec,
            [0.5, 0.7], strength, torch.float32, True, True, dq is not None,
        )  # fmt: skip
        torch.library.opcheck(torch.ops.hnkernels.mlp_backward, backward)


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_the_projection_operators(layout):
    make, arrange = X[layout], LAYOUTS[layout]
    x, w = [make(ROWS, WIDTH)], [arrange(torch.randn(OUT, WIDTH)), arrange(torch.randn(OUT + 1, WIDTH))]
    b = [torch.randn(OUT), torch.randn(OUT + 1)]
    torch.library.opcheck(torch.ops.hnkernels.linear, (x, w, b, False))
    torch.library.opcheck(torch.ops.hnkernels.linear, ([make(ROWS, OUT), make(ROWS, OUT + 1)], w, [], True))
    dy = [make(ROWS, OUT), make(ROWS, OUT + 1)]
    torch.library.opcheck(torch.ops.hnkernels.linear_weight_gradient, (dy, x, True))
    spec = ("relu", [True], [False], [0.0])
    hidden = [p for _ in "kv" for p in (arrange(torch.randn(2 * WIDTH, WIDTH)), torch.randn(2 * WIDTH))]
    g = [torch.randn(OUT, 2 * WIDTH), torch.randn(OUT + 1, 2 * WIDTH)]
    torch.library.opcheck(torch.ops.hnkernels.mlp_project, (x, hidden, w[0], b[0], *spec, w, g, b))
    pair = [make(ROWS, WIDTH), make(ROWS, WIDTH)]
    torch.library.opcheck(torch.ops.hnkernels.grouped_linear, (pair, w, [b[0], None], [0, 1]))
    torch.library.opcheck(torch.ops.hnkernels.grouped_linear_backward, (dy, w, [1, 0]))


def kernels_of_backward(context_gradient: bool, train_projections: bool, train_mlps: bool = True) -> list[str]:
    mlp_k, mlp_v = (make_mlp(WIDTH).requires_grad_(train_mlps) for _ in "kv")
    x = torch.randn(ROWS, WIDTH, requires_grad=context_gradient)
    w_k, w_v = (torch.randn(OUT, WIDTH, requires_grad=train_projections) for _ in "kv")
    kv = hyper_kv(x, mlp_k, mlp_v, w_k, w_v, backend="triton")
    with recording() as launches:
        torch.autograd.backward(kv, [torch.ones_like(t) for t in kv])
    assert (x.grad is not None) == context_gradient
    assert (w_k.grad is not None) == train_projections
    assert all((p.grad is not None) == train_mlps for mlp in (mlp_k, mlp_v) for p in mlp.parameters())
    return [launch.kernel for launch in launches]


def test_only_the_gradients_that_are_needed_are_computed():
    text = kernels_of_backward(context_gradient=False, train_projections=False)
    assert "input_gradient_kernel" not in text
    assert text.count("weight_gradient_kernel") == 2
    image = kernels_of_backward(context_gradient=True, train_projections=False)
    assert image.count("input_gradient_kernel") == 1
    assert kernels_of_backward(True, True).count("weight_gradient_kernel") == 3
    frozen = kernels_of_backward(context_gradient=True, train_projections=False, train_mlps=False)
    assert not [name for name in frozen if "weight_gradient" in name or "sum_rows" in name]


def test_a_second_derivative_raises_and_says_what_to_do():
    mlp = make_mlp(WIDTH, activation="silu")
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    w = torch.randn(OUT, WIDTH)
    q, k, v = hyper_qkv(x, mlp, mlp, w, w, w, backend="triton")
    # Another path to x exists, along which a derivative of the gradient could be had: silently wrong, if it were.
    loss = (q.sum() + k.square().sum() + v.sum()) * x.square().sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives; use backend='portable'"):
        gradient.sum().backward()


def test_unused_outputs_are_gradients_of_zero():
    mlp_k, mlp_v = make_mlp(WIDTH), make_mlp(WIDTH)
    x, w = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(OUT, WIDTH)

    def gradients(backend: str) -> list[Tensor]:
        k, _ = hyper_kv(x, mlp_k, mlp_v, w, w, backend=backend)
        return list(torch.autograd.grad(k.square().sum(), [x, *mlp_k.parameters()]))

    assert all(
        relative_error(a, b) <= GRADIENT_TOLERANCE
        for a, b in zip(gradients("triton"), gradients("portable"), strict=True)
    )


def test_parameters_of_another_dtype_get_gradients_of_theirs():
    mlps = [make_mlp(WIDTH, layer_norm=True, activation="prelu") for _ in "kv"]
    x = torch.randn(ROWS, WIDTH, dtype=torch.float16, requires_grad=True)
    w = torch.randn(OUT, WIDTH, dtype=torch.float16)
    k, v = hyper_kv(x, *mlps, w, w, backend="triton")
    (k.float().sum() + v.float().sum()).backward()
    assert k.dtype == x.grad.dtype == torch.float16
    assert all(p.grad.dtype == torch.float32 for mlp in mlps for p in mlp.parameters())


def test_vmap_and_forward_mode_are_refused_not_wrong():
    mlp, w = make_mlp(WIDTH), torch.randn(OUT, WIDTH)
    with pytest.raises(RuntimeError):
        torch.vmap(lambda x: hyper_kv(x, mlp, mlp, w, w, backend="triton"))(torch.randn(3, ROWS, WIDTH))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.randn(ROWS, WIDTH), torch.ones(ROWS, WIDTH))
        with pytest.raises((RuntimeError, NotImplementedError)):
            hyper_kv(dual, mlp, mlp, w, w, backend="triton")


@pytest.mark.parametrize("lengths", [(1, 2), (2, 1), (0, 1)])
def test_chains_of_different_lengths_come_out_in_autocasts_dtype(lengths):
    mlps_k, mlps_v = ([make_mlp(WIDTH) for _ in range(length)] for length in lengths)
    x, w = torch.randn(ROWS, WIDTH), torch.randn(OUT, WIDTH)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        kv = hyper_kv(x, mlps_k, mlps_v, w, w, backend="triton")
    assert [t.dtype for t in kv] == [torch.bfloat16] * 2


@pytest.mark.skipif(earlier("torch", (2, 9)), reason="PyTorch has had fp32_precision from 2.9 on")
def test_tf32_is_used_where_the_user_allows_it():
    assert arguments.product(torch.float32)["PRECISION"] == "ieee"
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        assert arguments.product(torch.float32)["PRECISION"] == "tf32"
        assert arguments.product(torch.float16)["PRECISION"] == "ieee"
    finally:
        matmul.fp32_precision = before


def test_the_structure_and_the_layers_say_the_same():
    spec = Structure("silu", (True, False), (True, True), (0.5, 0.0))
    first, last = spec.layers()
    assert (first.act, first.norm, first.dropout) == ("silu", True, 0.5)
    assert (last.act, last.norm, last.dropout) == ("linear", True, 0.0)
