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

    Shape: x [M, K], w [K, N] or a transpose, onto [N] or [M, N], out itself among them → out [M, N]; without ``onto``
    also several at once, [streams, M, K] × [streams, K, N].
    """
    (M, K), N = x.shape[-2:], w.shape[-1]
    batch = x.shape[0] if x.ndim == 3 else 1

    def entry(_: Tensor) -> Launch:
        return _entry("product", (batch, M, N, K), [x, w, onto], [out], why, "relu" if relu else "linear")

    compute(_multiply, entry, out, onto, x, w, scale, relu)


def together(streams: Sequence[Tensor]) -> Tensor | None:
    """Both streams as one tensor, where they are the same one or one follows the other in memory.

    Shape: two of [M, N] → [2, M, N].
    """
    if len(streams) != 2:
        return None
    k, v = streams
    if k is v:
        return k.expand(2, *k.shape)
    apart = v.storage_offset() - k.storage_offset()
    in_one = k.untyped_storage()._cdata == v.untyped_storage()._cdata and apart >= k.numel()
    if not in_one or (k.shape, k.stride()) != (v.shape, v.stride()):
        return None
    return k.as_strided((2, *k.shape), (apart, *k.stride()), k.storage_offset())


def add(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out = a + b``, all of one shape."""
    compute(_add, lambda _: _entry("add", None, [a, b], [out], ""), out, a, b)


def sum_columns(out: Tensor, x: Tensor, scale: float) -> None:
    """``out = scale · Σ x`` over rows. Shape: x [M, N] → out [N]."""
    compute(_sum_columns, lambda _: _entry("sum", None, [x], [out], ""), out, x, scale)


def _multiply(out: Tensor, onto: Tensor | None, x: Tensor, w: Tensor, scale: float, relu: bool) -> Tensor:
    if onto is None:
        product = torch.addmm if out.ndim == 2 else torch.baddbmm
        return product(out, x, w, beta=0, alpha=scale, out=out)
    if relu:
        return torch._addmm_activation(onto, x, w, alpha=scale, use_gelu=False, out=out)
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
