"""The projections after the MLPs: K and V in one launch, and the gradient of their input."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton import vendor
from hnkernels.triton._compat import convert
from hnkernels.triton.autotune import choose, runs
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.arguments import Streams, acc_dtype, product
from hnkernels.triton.kernels.sums import sum_rows
from hnkernels.triton.kernels.tiles import multiply, part_of, tile_of
from hnkernels.triton.launch import launch
from hnkernels.triton.route import route
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import MOST_SPLITS


@triton.jit(do_not_specialize=["M"])
def linear_streams_kernel(
    x_k_ptr,  # [M, K_k]
    x_v_ptr,  # [M, K_v]
    w_k_ptr,  # [N_k, K_k], or its transpose with TRANSPOSED
    w_v_ptr,  # [N_v, K_v]
    b_k_ptr,  # [N_k] or None
    b_v_ptr,
    z_ptr,  # [2, M, H]: a second factor, or None
    g_k_ptr,  # [N_k, H]
    g_v_ptr,  # [N_v, H]
    out_k_ptr,  # [M, N_k]; with SPLIT its fp32 parts, [splits, M, N_k]
    out_v_ptr,  # [M, N_v]
    M,
    N_k,
    N_v,
    K_k,
    K_v,
    H,
    stride_xk,
    stride_xv,
    split_steps,  # with SPLIT: steps of the main loop that fall to one split
    SPLIT: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``out = x wᵀ [+ z gᵀ] [+ b]`` for every stream; with SPLIT parts of it, to be added up.

    The second product is the MLP's last linear inside the projection: ``W_p (x + m·W₂z) = W_p x + (m·W_p W₂) z``.
    """
    wait_for_launches_before()
    stream = tl.program_id(1)
    x_ptr, w_ptr, out_ptr, N, K, stride_xm = x_k_ptr, w_k_ptr, out_k_ptr, N_k, K_k, stride_xk
    if stream == 1:
        x_ptr, w_ptr, out_ptr, N, K, stride_xm = x_v_ptr, w_v_ptr, out_v_ptr, N_v, K_v, stride_xv
    if tl.program_id(0) >= tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N):
        return  # the grid is as large as the wider stream needs
    tile_m, tile_n = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    split = 0
    first, last = 0, K
    if SPLIT:
        split = tl.program_id(2)
        first, last = part_of(split, split_steps, 0, K, BLOCK_K)
    stride_w = K
    if TRANSPOSED:
        stride_w = N
    acc = multiply(
        acc, x_ptr, w_ptr, rows, cols, M, N, K, stride_xm, stride_w, TRANSPOSED, BLOCK_K, EVEN, PRECISION, None,
        first, last,
    )  # fmt: skip
    if z_ptr is not None:
        g_ptr = g_k_ptr
        if stream == 1:
            g_ptr = g_v_ptr
        at = z_ptr + stream * (tl.cast(M, tl.int64) * H)
        first, last = 0, H
        if SPLIT:
            first, last = part_of(split, split_steps, tl.cdiv(K, BLOCK_K), H, BLOCK_K)
        acc = multiply(
            acc, at, g_ptr, rows, cols, M, N, H, H, H, False, BLOCK_K, EVEN, PRECISION, None, first, last
        )  # fmt: skip
    if b_k_ptr is not None:
        b_ptr = b_k_ptr
        if stream == 1:
            b_ptr = b_v_ptr
        bias = tl.load(b_ptr + cols, mask=cols < N, other=0.0).to(ACC)[None, :]
        if SPLIT:
            bias = tl.where(split == 0, bias, 0.0)
        acc += bias
    if SPLIT:
        out_ptr += split * (tl.cast(M, tl.int64) * N)
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    tl.store(out_ptr + rows[:, None] * N + cols[None, :], convert(acc, out_ptr.dtype.element_ty), mask=mask)


def linear(
    x: Streams,
    w: Streams,
    b: tuple[Tensor | None, ...] | None = None,
    *,
    transposed: bool = False,
    z: Tensor | None = None,
    g: Streams | None = None,
) -> Streams:
    """``x wᵀ + b`` per stream (``x w`` if transposed), plus ``z gᵀ`` if given: the MLP's last linear in the projection.

    Shape: x [M, K], w [N, K], or [K, N] if transposed, b [N], z [streams, M, H], g [N, H] → [M, N]. N and K may differ
    between the streams.
    """
    M, dtype, device = x[0].shape[0], x[0].dtype, x[0].device
    sizes = [t.shape[::-1] if transposed else t.shape for t in w]
    widest, deepest = (max(size[i] for size in sizes) for i in (0, 1))
    hidden = 0 if z is None else z.shape[-1]
    target = target_of(device)
    kind, splits = ("backward", 1) if transposed else ("linear", MOST_SPLITS)
    tiles = choose(kind, M, widest, deepest + hidden, dtype, target, splits=splits)
    products = [(M, n, k) for n, k in sizes] * (2 if len(sizes) == 1 else 1)
    products += [(M, n, hidden) for _, n, _ in products if hidden]
    moved = M * (sizes[0][0] + sizes[-1][0]) if hidden else 0  # the sum so far is read once more
    by = route(kind, M, widest, deepest + hidden, dtype, target, tiles, products, moved)
    outs = tuple(torch.empty(M, n, device=device, dtype=dtype) for n, _ in sizes)
    if by.vendor:
        for i, (o, t) in enumerate(zip(outs, w, strict=True)):
            vendor.multiply(o, x[i], t if transposed else t.t(), None if b is None else b[i], why=by.why)
            if z is not None and g is not None:
                vendor.multiply(o, z[i], g[i].t(), o, why=by.why)
        return outs
    if b is None or all(t is None for t in b):
        b = (None,)
    else:  # a bias on one stream only is rare: the other one's is 0
        b = tuple(
            torch.zeros(o.shape[1], device=device, dtype=dtype) if t is None else t
            for t, o in zip(b, outs, strict=True)
        )
    steps = triton.cdiv(deepest, tiles.block_k) + triton.cdiv(hidden, tiles.block_k)
    split_steps, splits = tiles.parts(steps)
    written = outs
    if splits > 1:
        written = tuple(torch.empty(splits, M * n, device=device, dtype=acc_dtype(dtype)) for n, _ in sizes)
    launch(
        linear_streams_kernel,
        (triton.cdiv(M, tiles.block_m) * triton.cdiv(widest, tiles.block_n), len(x), splits),
        tiles=tiles,
        flops=2 * M * sum(n * (k + hidden) for n, k in sizes),
        steps=split_steps,
        why=by.why,
        writes=("out_k_ptr", "out_v_ptr"),
        x_k_ptr=x[0], x_v_ptr=x[-1], w_k_ptr=w[0], w_v_ptr=w[-1], b_k_ptr=b[0], b_v_ptr=b[-1],
        z_ptr=z, g_k_ptr=g[0] if g else None, g_v_ptr=g[-1] if g else None,
        out_k_ptr=written[0], out_v_ptr=written[-1],
        M=M, N_k=sizes[0][0], N_v=sizes[-1][0], K_k=sizes[0][1], K_v=sizes[-1][1], H=hidden,
        stride_xk=x[0].stride(0), stride_xv=x[-1].stride(0),
        split_steps=split_steps, SPLIT=splits > 1, TRANSPOSED=transposed, **product(dtype),
        EVEN=all(k % tiles.block_k == 0 for _, k in sizes) and hidden % tiles.block_k == 0
        and not (transposed and any(n % tiles.block_n for n, _ in sizes)),
    )  # fmt: skip
    if splits > 1:
        sum_rows(*((parts, out.view(-1)) for parts, out in zip(written, outs, strict=True)))
    return outs


@runs("forward")
def _forward(x: Tensor, w: Tensor) -> None:
    linear((x, x), (w, w))


@runs("backward")
def _backward(x: Tensor, w: Tensor) -> None:
    linear((x, x), (w, w), transposed=True)
