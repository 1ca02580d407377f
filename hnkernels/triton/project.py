"""The projections behind the MLPs: K and V in one launch, or many layers' over one context, and their gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from hnkernels.triton._compat import convert
from hnkernels.triton.tiles import multiply, tile_of


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
    out_k_ptr,  # [M, N_k]
    out_v_ptr,  # [M, N_v]
    M,
    N_k,
    N_v,
    K_k,
    K_v,
    H,
    stride_xk,
    stride_xv,
    TRANSPOSED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``out = x wᵀ [+ z gᵀ] [+ b]`` for every stream.

    The second product is the MLP's last linear inside the projection: ``W_p (x + m·W₂z) = W_p x + (m·W_p W₂) z``.
    """
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
    if TRANSPOSED:
        acc = multiply(acc, x_ptr, w_ptr, rows, cols, M, N, K, stride_xm, N, True, BLOCK_K, EVEN, PRECISION)
    else:
        acc = multiply(acc, x_ptr, w_ptr, rows, cols, M, N, K, stride_xm, K, False, BLOCK_K, EVEN, PRECISION)
    if z_ptr is not None:
        g_ptr = g_k_ptr
        if stream == 1:
            g_ptr = g_v_ptr
        at = z_ptr + stream * (tl.cast(M, tl.int64) * H)
        acc = multiply(acc, at, g_ptr, rows, cols, M, N, H, H, H, False, BLOCK_K, EVEN, PRECISION)
    if b_k_ptr is not None:
        b_ptr = b_k_ptr
        if stream == 1:
            b_ptr = b_v_ptr
        acc += tl.load(b_ptr + cols, mask=cols < N, other=0.0).to(ACC)[None, :]
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    tl.store(out_ptr + rows[:, None] * N + cols[None, :], convert(acc, out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def grouped_linear_kernel(
    x_k_ptr,  # [M, K]
    x_v_ptr,  # [M, K]
    table_ptr,  # [groups, 5] int64: addresses of w [N, K] and b [N] (0: none), N, first column, stream
    tiles_ptr,  # [tiles of columns, 2] int32: group, tile within it
    out_ptr,  # flat: the results [M, N] of the groups one behind the other
    M,
    K,
    stride_xk,
    stride_xv,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    ALIGNED: tl.constexpr,  # every N is a multiple of 16
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``out_g = x wᵀ_g + b_g`` for many projections of one context, each of the K or the V stream."""
    dtype = x_k_ptr.dtype.element_ty
    tiles_n = tl.num_programs(0) // tl.cdiv(M, BLOCK_M)
    tile_m, tile = tile_of(tl.program_id(0), M, tiles_n * BLOCK_N, BLOCK_M, BLOCK_N, GROUP_M)
    row = table_ptr + tl.load(tiles_ptr + 2 * tile) * 5
    # Every weight begins at a multiple of 16 bytes; the launcher has looked.
    w_ptr = tl.multiple_of(tl.load(row).to(tl.pointer_type(dtype)), 16)
    bias = tl.load(row + 1)
    N = tl.load(row + 2).to(tl.int32)
    first = tl.load(row + 3)
    if ALIGNED:
        N = tl.multiple_of(N, 16)
        first = tl.multiple_of(first, 16)
    x_ptr, stride_xm = x_k_ptr, stride_xk
    if tl.load(row + 4) == 1:
        x_ptr, stride_xm = x_v_ptr, stride_xv
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.load(tiles_ptr + 2 * tile + 1) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    acc = multiply(acc, x_ptr, w_ptr, rows, cols, M, N, K, stride_xm, K, False, BLOCK_K, EVEN, PRECISION)
    if bias != 0:
        acc += tl.load(bias.to(tl.pointer_type(dtype)) + cols, mask=cols < N, other=0.0).to(ACC)[None, :]
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    at = out_ptr + first * M + rows[:, None] * N + cols[None, :]
    tl.store(at, convert(acc, out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["groups", "M"])
def grouped_input_gradient_kernel(
    table_ptr,  # [groups, 4] int64: addresses of dp [M, N] and w [N, K], N, stream
    dx_k_ptr,  # [M, K]
    dx_v_ptr,
    groups,
    M,
    K,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,  # every N is a multiple of BLOCK_K, and K of BLOCK_N
    ALIGNED: tl.constexpr,  # every N is a multiple of 16
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``dx_s = Σ dp_g w_g`` over the groups g of stream s, in the order of the table."""
    stream = tl.program_id(1)
    dtype = dx_k_ptr.dtype.element_ty
    dx_ptr = dx_k_ptr
    if stream == 1:
        dx_ptr = dx_v_ptr
    tile_m, tile_n = tile_of(tl.program_id(0), M, K, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for group in range(groups):
        row = table_ptr + group * 4
        if tl.load(row + 3) == stream:
            dp_ptr = tl.multiple_of(tl.load(row).to(tl.pointer_type(dtype)), 16)
            w_ptr = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(dtype)), 16)
            N = tl.load(row + 2).to(tl.int32)
            if ALIGNED:
                N = tl.multiple_of(N, 16)
            acc = multiply(acc, dp_ptr, w_ptr, rows, cols, M, K, N, N, K, True, BLOCK_K, EVEN, PRECISION)
    mask = (rows < M)[:, None] & (cols < K)[None, :]
    tl.store(dx_ptr + rows[:, None] * K + cols[None, :], convert(acc, dx_ptr.dtype.element_ty), mask=mask)
