"""Linears with low-rank weights by sample, forward; see ``lowrank_slices``."""

from __future__ import annotations

import triton
import triton.language as tl

from hnkernels.triton._compat import convert, dot
from hnkernels.triton.lowrank_slices import (
    AT_A,
    AT_B,
    AT_BIAS,
    AT_N_BEFORE,
    AT_RANK,
    AT_SLICE,
    AT_W,
    COLUMNS_IN_TABLE,
    before,
    expansion,
    pick,
    pointer,
    scale_of,
    set_of,
    width,
)
from hnkernels.triton.tiles import multiply, tile_of


@triton.jit
def multiply_both(
    acc,  # [BLOCK_M, BLOCK_N]
    u,  # [BLOCK_M, BLOCK_R]
    x_ptr,  # [M, K]
    w_ptr,  # [N, K]
    a_ptr,  # [r, K]
    rows,  # [BLOCK_M] int64
    cols,  # [BLOCK_N]
    ranks,  # [BLOCK_R]
    M,
    N,
    r,
    K,
    depth,  # K, or 0
    stride_xm,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``acc + x wᵀ`` and ``u + x aᵀ`` by one pass over x; see ``multiply``.

    Columns of u from r on repeat the first one: nothing may come of them.
    """
    steps = tl.arange(0, BLOCK_K)
    inside = tl.where(rows < M, rows, 0)
    x_tile = x_ptr + inside[:, None] * stride_xm + steps[None, :]  # [BLOCK_M, BLOCK_K]
    w_tile = w_ptr + steps[:, None] + tl.where(cols < N, cols, 0)[None, :] * K  # [BLOCK_K, BLOCK_N]
    a_tile = a_ptr + steps[:, None] + tl.where(ranks < r, ranks, 0)[None, :] * K  # [BLOCK_K, BLOCK_R]
    for k in range(0, depth, BLOCK_K):
        if EVEN:
            x = tl.load(x_tile)
            w = tl.load(w_tile)
            a = tl.load(a_tile)
        else:
            deep = steps < depth - k
            x = tl.load(x_tile, mask=deep[None, :], other=0.0)
            w = tl.load(w_tile, mask=deep[:, None] & (cols < N)[None, :], other=0.0)
            a = tl.load(a_tile, mask=deep[:, None] & (ranks < r)[None, :], other=0.0)
        acc = dot(x, w, acc, PRECISION)
        u = dot(x, a, u, PRECISION)
        x_tile += BLOCK_K
        w_tile += BLOCK_K
        a_tile += BLOCK_K
    return acc, u


@triton.jit(do_not_specialize=["T", "tiles_n", "samples", "each", "r_0", "r_1", "r_2", "stride_scale"])
def lowrank_forward_kernel(
    x_ptr,  # [S, T, K]
    w_0_ptr,  # [N_p, K]
    w_1_ptr,
    w_2_ptr,
    bias_0_ptr,  # [N_p], or None for all
    bias_1_ptr,
    bias_2_ptr,
    a_0_ptr,  # [G, r_p, K]
    a_1_ptr,
    a_2_ptr,
    b_0_ptr,  # [G, N_p, r_p]
    b_1_ptr,
    b_2_ptr,
    scale_ptr,  # [slices, S], or None
    index_ptr,  # [S] int64, or None
    out_0_ptr,  # [S, T, N_p]; with a table flat, the slices behind one another
    out_1_ptr,
    out_2_ptr,
    table_ptr,  # [slices, 10] int64, or None
    tiles_ptr,  # [tiles_n, 2] int32: slice, tile within it; with a table
    T,
    K,
    N_0,
    N_1,
    N_2,
    r_0,
    r_1,
    r_2,
    tiles_n,  # tiles of columns of all slices
    samples,
    each,
    stride_xs,
    stride_xm,
    stride_scale,
    MULTIPLE: tl.constexpr,  # of it all ranks are multiples
    ALIGNED: tl.constexpr,  # every N in the table is a multiple of 16
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``out_p[s] = x[s] w_pᵀ + bias_p + scale_p[s]·(x[s] a_p[i]ᵀ) b_p[i]ᵀ``.

    The tiles of all slices lie side by side in the grid: those that run together share their rows of x.
    """
    dtype = x_ptr.dtype.element_ty
    per_sample = tl.cdiv(T, BLOCK_M) * tiles_n
    sample = tl.program_id(0) // per_sample
    tile_m, column = tile_of(tl.program_id(0) % per_sample, T, tiles_n * BLOCK_N, BLOCK_M, BLOCK_N, GROUP_M)
    if table_ptr is None:
        first = tl.cdiv(N_0, BLOCK_N)
        second = tl.cdiv(N_1, BLOCK_N)
        number = (column >= first).to(tl.int32) + (column >= first + second).to(tl.int32)
        tile_n = column - before(number, first, second)
        w_ptr, N = pick(number, w_0_ptr, w_1_ptr, w_2_ptr), pick(number, N_0, N_1, N_2)
        a_ptr, b_ptr = pick(number, a_0_ptr, a_1_ptr, a_2_ptr), pick(number, b_0_ptr, b_1_ptr, b_2_ptr)
        out_ptr, r = pick(number, out_0_ptr, out_1_ptr, out_2_ptr), pick(number, r_0, r_1, r_2)
    else:
        number, tile_n = tl.load(tiles_ptr + 2 * column), tl.load(tiles_ptr + 2 * column + 1)
        row = table_ptr + number * COLUMNS_IN_TABLE
        w_ptr, N, r = pointer(row, AT_W, x_ptr), width(row, ALIGNED), tl.load(row + AT_RANK).to(tl.int32)
        a_ptr, b_ptr = pointer(row, AT_A, x_ptr), pointer(row, AT_B, x_ptr)
        start = tl.load(row + AT_N_BEFORE) * samples * T
        if ALIGNED:
            start = tl.multiple_of(start, 16)
        out_ptr = out_0_ptr + start
    r = tl.multiple_of(r, MULTIPLE)
    x_ptr += sample.to(tl.int64) * stride_xs
    item = set_of(sample, index_ptr, each)
    scale = scale_of(number, sample, scale_ptr, stride_scale)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ranks = tl.arange(0, BLOCK_R)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    depth = K
    if scale_ptr is not None:
        # One of the two products has no steps. A branch instead would take the shared memory of both.
        plain = tl.where(scale == 0, K, 0)
        acc = multiply(acc, x_ptr, w_ptr, rows, cols, T, N, plain, stride_xm, K, False, BLOCK_K, EVEN, PRECISION)
        depth = K - plain
    u = tl.zeros((BLOCK_M, BLOCK_R), ACC)
    acc, u = multiply_both(
        acc, u, x_ptr, w_ptr, a_ptr + item * (r * K), rows, cols, ranks, T, N, r, K, depth, stride_xm, BLOCK_K, EVEN,
        PRECISION,
    )  # fmt: skip
    if depth > 0:
        b = expansion(b_ptr + item * N * r, cols, ranks, N, r)
        acc = dot(convert(u * scale, dtype), b, acc, PRECISION)
    if table_ptr is None:
        if bias_0_ptr is not None:
            bias_ptr = pick(number, bias_0_ptr, bias_1_ptr, bias_2_ptr)
            acc += tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(ACC)[None, :]
    else:
        bias = tl.load(row + AT_BIAS)
        if bias != 0:
            acc += tl.load(bias.to(x_ptr.dtype) + cols, mask=cols < N, other=0.0).to(ACC)[None, :]
    mask = (rows < T)[:, None] & (cols < N)[None, :]
    at = out_ptr + (sample.to(tl.int64) * T + rows[:, None]) * N + cols[None, :]
    tl.store(at, convert(acc, dtype), mask=mask)


@triton.jit(do_not_specialize=["T", "samples", "each", "r_0", "r_1", "r_2", "stride_scale"])
def lowrank_add_kernel(
    base_0_ptr,  # [S, T, N_p]
    base_1_ptr,
    base_2_ptr,
    x_ptr,  # [S, T, K]
    a_0_ptr,  # [G, r_p, K]
    a_1_ptr,
    a_2_ptr,
    b_0_ptr,  # [G, N_p, r_p]
    b_1_ptr,
    b_2_ptr,
    scale_ptr,  # [slices, S], or None
    index_ptr,  # [S] int64, or None
    out_0_ptr,  # [S, T, N_p]; with a table flat, the slices behind one another
    out_1_ptr,
    out_2_ptr,
    table_ptr,  # [slices, 10] int64, or None
    T,
    K,
    N_0,
    N_1,
    N_2,
    r_0,
    r_1,
    r_2,
    samples,
    each,
    stride_xs,
    stride_xm,
    stride_scale,
    MULTIPLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``out_p[s] = base_p[s] + scale_p[s]·(x[s] a_p[i]ᵀ) b_p[i]ᵀ``. A program goes through all columns of its rows."""
    dtype = x_ptr.dtype.element_ty
    tiles_m = tl.cdiv(T, BLOCK_M)
    sample, number = tl.program_id(0) // tiles_m, tl.program_id(1)
    if table_ptr is None:
        base_ptr, N = pick(number, base_0_ptr, base_1_ptr, base_2_ptr), pick(number, N_0, N_1, N_2)
        a_ptr, b_ptr = pick(number, a_0_ptr, a_1_ptr, a_2_ptr), pick(number, b_0_ptr, b_1_ptr, b_2_ptr)
        out_ptr, r = pick(number, out_0_ptr, out_1_ptr, out_2_ptr), pick(number, r_0, r_1, r_2)
    else:
        row = table_ptr + number * COLUMNS_IN_TABLE
        base_ptr, N, r = pointer(row, AT_SLICE, x_ptr), width(row, ALIGNED), tl.load(row + AT_RANK).to(tl.int32)
        a_ptr, b_ptr = pointer(row, AT_A, x_ptr), pointer(row, AT_B, x_ptr)
        start = tl.load(row + AT_N_BEFORE) * samples * T
        if ALIGNED:
            start = tl.multiple_of(start, 16)
        out_ptr = out_0_ptr + start
    r = tl.multiple_of(r, MULTIPLE)
    item = set_of(sample, index_ptr, each)
    scale = scale_of(number, sample, scale_ptr, stride_scale)
    plain = tl.where(scale == 0, N, 0)
    rows = (tl.program_id(0) % tiles_m).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    ranks = tl.arange(0, BLOCK_R)
    u = tl.zeros((BLOCK_M, BLOCK_R), ACC)
    u = multiply(
        u, x_ptr + sample.to(tl.int64) * stride_xs, a_ptr + item * (r * K), rows, ranks, T, r,
        tl.where(scale == 0, 0, K), stride_xm, K, False, BLOCK_K, EVEN, PRECISION,
    )  # fmt: skip
    u = convert(u * scale, dtype)
    b_ptr += item * N * r
    at = (sample.to(tl.int64) * T + rows[:, None]) * N
    for n in range(0, plain, BLOCK_N):
        cols = n + tl.arange(0, BLOCK_N)
        mask = (rows < T)[:, None] & (cols < N)[None, :]
        tl.store(out_ptr + at + cols[None, :], tl.load(base_ptr + at + cols[None, :], mask=mask), mask=mask)
    for n in range(0, N - plain, BLOCK_N):
        cols = n + tl.arange(0, BLOCK_N)
        mask = (rows < T)[:, None] & (cols < N)[None, :]
        base = tl.load(base_ptr + at + cols[None, :], mask=mask, other=0.0).to(ACC)
        acc = dot(u, expansion(b_ptr, cols, ranks, N, r), base, PRECISION)
        tl.store(out_ptr + at + cols[None, :], convert(acc, dtype), mask=mask)
