"""Products of the vendor's library, by way of PyTorch: steps of a program, counted like launches.

cuBLAS and hipBLASLt multiply faster than a kernel of ours where the card has ways of moving operands that Triton does
not use, and leave the rest to another launch: whether that pays is decided per product (``route.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hnkernels.triton.launch import Launch, compute, unique_bytes

PREFIX = "vendor_"
"""Of the names that these steps are counted under."""


def linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """``x wᵀ + b`` by PyTorch's own linear, which a bare projection cannot better.

    Shape: x [..., d], w [n, d], b [n] → [..., n].
    """
    if torch.compiler.is_compiling():
        return F.linear(x, w, b)
    n, d = w.shape
    rows = x.numel() // d if d else 0
    return compute(F.linear, lambda out: _entry("linear", (1, rows, n, d), [x, w, b], [out], ""), x, w, b)


def multiply(
    out: Tensor,
    x: Tensor,
    w: Tensor,
    onto: Tensor | None = None,
    *,
    scale: float = 1.0,
    relu: bool = False,
    why: str = "",
) -> None:
    """``out = [onto +] scale · x w``, then perhaps relu.

    Shape: x [M, K], w [K, N] or a transpose, onto [N] or [M, N], out itself among them → out [M, N].
    """
    (M, K), N = x.shape, w.shape[1]

    def entry(_: Tensor) -> Launch:
        return _entry("product", (1, M, N, K), [x, w, onto], [out], why, "relu" if relu else "linear")

    compute(_multiply, entry, out, onto, x, w, scale, relu)


def add(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out = a + b``, all of one shape."""
    compute(_add, lambda _: _entry("add", None, [a, b], [out], ""), out, a, b)


def sum_columns(out: Tensor, x: Tensor, scale: float) -> None:
    """``out = scale · Σ x`` over rows. Shape: x [M, N] → out [N]."""
    compute(_sum_columns, lambda _: _entry("sum", None, [x], [out], ""), out, x, scale)


def _multiply(out: Tensor, onto: Tensor | None, x: Tensor, w: Tensor, scale: float, relu: bool) -> Tensor:
    if relu:
        return torch._addmm_activation(onto, x, w, alpha=scale, use_gelu=False, out=out)
    if onto is None:
        return torch.addmm(out, x, w, beta=0, alpha=scale, out=out)
    return torch.addmm(onto, x, w, alpha=scale, out=out)


def _add(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.add(a, b, out=out)


def _sum_columns(out: Tensor, x: Tensor, scale: float) -> Tensor:
    torch.sum(x, 0, out=out)
    return out if scale == 1 else out.mul_(scale)


def _entry(
    name: str,
    product: tuple[int, int, int, int] | None,
    read: Sequence[Tensor | None],
    written: Sequence[Tensor],
    why: str,
    act: str = "linear",
) -> Launch:
    flops = 0
    if product is not None:
        batch, M, N, K = product
        flops = 2 * batch * M * N * K
    return Launch(
        PREFIX + name, 1, None, flops, unique_bytes(read), unique_bytes(written), product=product, act=act, why=why
    )
