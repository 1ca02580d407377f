"""The gradient of the context: through the first layers of K and V, through the residual, and through the query."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton import vendor
from hnkernels.triton._compat import convert
from hnkernels.triton.autotune import choose
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.arguments import Streams, acc_dtype, product
from hnkernels.triton.kernels.sums import sum_rows
from hnkernels.triton.kernels.tiles import multiply, part_of, tile_of
from hnkernels.triton.launch import launch
from hnkernels.triton.route import route
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import MOST_SPLITS


@triton.jit(do_not_specialize=["M"])
def input_gradient_kernel(
    dy_k_ptr,  # [M, D]
    dy_v_ptr,
    da_k_ptr,  # [M, K]
    da_v_ptr,
    w_k_ptr,  # [K, D]
    w_v_ptr,
    dq_ptr,  # [M, Q], or None
    w_q_ptr,  # [Q, D]
    dx_k_ptr,  # [M, D]; with SPLIT its fp32 parts, [splits, M, D]
    dx_v_ptr,
    M,
    D,
    K,
    Q,
    split_steps,  # with SPLIT: steps of the main loop that fall to one split
    SPLIT: tl.constexpr,
    SHARED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``dx_s = dy_s + da_s w_s``; with SHARED, where K and V rewrite one context, their sum ``[+ dq w_q]`` in dx_k.

    With SPLIT parts of it, to be added up.
    """
    wait_for_launches_before()
    tile_m, tile_n = tile_of(tl.program_id(0), M, D, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    at = rows[:, None] * D + cols[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    split = 0
    first, last = 0, K
    added = M  # rows of the gradient through the residual
    if SPLIT:
        split = tl.program_id(2)
        first, last = part_of(split, split_steps, 0, K, BLOCK_K)
        added = tl.where(split == 0, M, 0)
    with_residual = (rows < added)[:, None] & (cols < D)[None, :]
    if SHARED:
        dx_ptr = dx_k_ptr
        acc = multiply(
            acc, da_k_ptr, w_k_ptr, rows, cols, M, D, K, K, D, True, BLOCK_K, EVEN, PRECISION, None, first, last
        )  # fmt: skip
        if SPLIT:
            first, last = part_of(split, split_steps, tl.cdiv(K, BLOCK_K), K, BLOCK_K)
        acc = multiply(
            acc, da_v_ptr, w_v_ptr, rows, cols, M, D, K, K, D, True, BLOCK_K, EVEN, PRECISION, None, first, last
        )  # fmt: skip
        if dq_ptr is not None:
            first, last = 0, Q
            if SPLIT:
                first, last = part_of(split, split_steps, 2 * tl.cdiv(K, BLOCK_K), Q, BLOCK_K)
            acc = multiply(
                acc, dq_ptr, w_q_ptr, rows, cols, M, D, Q, Q, D, True, BLOCK_K, EVEN, PRECISION, None, first, last
            )  # fmt: skip
        acc += tl.load(dy_k_ptr + at, mask=with_residual, other=0.0).to(ACC)
        acc += tl.load(dy_v_ptr + at, mask=with_residual, other=0.0).to(ACC)
    else:
        dy_ptr, da_ptr, w_ptr, dx_ptr = dy_k_ptr, da_k_ptr, w_k_ptr, dx_k_ptr
        if tl.program_id(1) == 1:
            dy_ptr, da_ptr, w_ptr, dx_ptr = dy_v_ptr, da_v_ptr, w_v_ptr, dx_v_ptr
        acc = multiply(
            acc, da_ptr, w_ptr, rows, cols, M, D, K, K, D, True, BLOCK_K, EVEN, PRECISION, None, first, last
        )  # fmt: skip
        acc += tl.load(dy_ptr + at, mask=with_residual, other=0.0).to(ACC)
    mask = (rows < M)[:, None] & (cols < D)[None, :]
    if SPLIT:
        dx_ptr += split * (tl.cast(M, tl.int64) * D)
    tl.store(dx_ptr + at, convert(acc, dx_ptr.dtype.element_ty), mask=mask)


def input_gradient(
    dy: Streams,
    da: Streams,
    w: Streams,
    *,
    shared: bool,
    out_dtype: torch.dtype,
    query: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``dy + da w`` per stream, or their sum if the streams share x; ``query`` is (dq [M, Q], w_q [Q, D]).

    Shape: dy [M, D], da [M, K], w [K, D] → [M, D], and a second one unless shared.
    """
    (M, D), K = dy[0].shape, da[0].shape[1]
    dtype, device = da[0].dtype, dy[0].device
    Q = 0 if query is None else query[0].shape[1]
    products, target = 2 if shared else 1, target_of(device)
    depth = products * K + Q
    tiles = choose("input gradient", M, D, depth, dtype, target, splits=MOST_SPLITS)
    several = [(M, D, K)] * products + [(M, D, Q)] * (Q > 0)
    # The sum of both gradients, and then of it and every product, are written and read in between.
    by = route("input gradient", M, D, depth, dtype, target, tiles, several, M * D * (3 + products), launches=shared)
    dx_k = torch.empty(M, D, device=device, dtype=out_dtype)
    dx_v = torch.empty_like(dx_k) if len(dy) == 2 and not shared else None
    steps = products * triton.cdiv(K, tiles.block_k) + triton.cdiv(Q, tiles.block_k)
    split_steps, splits = tiles.parts(steps)
    outs: Streams = (dx_k,) if dx_v is None else (dx_k, dx_v)
    if by.vendor and out_dtype == dtype:
        _by_vendor(outs, dy, da, w, query, by.why)
        return dx_k, dx_v
    written = outs
    if splits > 1:
        written = tuple(torch.empty(splits, M * D, device=device, dtype=acc_dtype(dtype)) for _ in outs)
    launch(
        input_gradient_kernel,
        (triton.cdiv(M, tiles.block_m) * triton.cdiv(D, tiles.block_n), 1 if shared else len(dy), splits),
        tiles=tiles,
        flops=2 * M * D * (len(dy) * K + Q),
        steps=split_steps,
        why=by.why,
        writes=("dx_k_ptr", "dx_v_ptr"),
        dy_k_ptr=dy[0], dy_v_ptr=dy[-1], da_k_ptr=da[0], da_v_ptr=da[-1], w_k_ptr=w[0], w_v_ptr=w[-1],
        dq_ptr=query[0] if query else None, w_q_ptr=query[1] if query else None,
        dx_k_ptr=written[0], dx_v_ptr=written[-1],
        M=M, D=D, K=K, Q=Q, split_steps=split_steps, SPLIT=splits > 1, SHARED=shared, **product(dtype),
        EVEN=K % tiles.block_k == Q % tiles.block_k == D % tiles.block_n == 0,
    )  # fmt: skip
    if splits > 1:
        sum_rows(*((parts, out.view(-1)) for parts, out in zip(written, outs, strict=True)))
    return dx_k, dx_v


def _by_vendor(
    outs: Streams, dy: Streams, da: Streams, w: Streams, query: tuple[Tensor, Tensor] | None, why: str
) -> None:
    """The gradient into ``outs``: one for each stream, or one for both."""
    if len(outs) < len(dy):
        vendor.add(outs[0], dy[0], dy[1])
        dy = outs * 2
    for i, gradient in enumerate(da):
        vendor.multiply(outs[i % len(outs)], gradient, w[i], dy[i], why=why)
    if query is not None:
        vendor.multiply(outs[0], *query, onto=outs[0], why=why)
