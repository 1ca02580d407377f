"""Linears with low-rank weights of their own for every sample: q, k and v of one x in a launch, or many layers'.

    y_p[s] = x[s] W_pᵀ + bias_p + scale_p[s]·u_p[s] B_p[i]ᵀ    with u_p[s] = x[s] A_p[i]ᵀ and i the set of sample s

A slice p is one such linear. With g_p[s] = dy_p[s] B_p[i] and sums over tokens t, and for a set over its samples s,

    dx = Σ_p dy_p W_p + scale_p·g_p A_p        dA_p[i] = Σ_s scale_p[s]·g_p[s]ᵀ x[s]
    dscale_p[s] = Σ_t g_p[s]∘u_p[s]            dB_p[i] = Σ_s scale_p[s]·dy_p[s]ᵀ u_p[s]

No tile has tokens of two samples, so a program has one scale and one set of factors. Ranks are filled up to BLOCK_R.
Up to three slices come as pointers; more of them in a table, [slices, 10] int64, whose columns are named below. A
scale of 0 leaves the programs of its sample the plain linear alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hnkernels.triton._compat import convert, dot
from hnkernels.triton.tiles import multiply, tile_of

# Addresses of the tensor that goes with a slice (dy, or what is added to), of w, bias (0: none), a and b; widths; and
# how many columns, ranks and elements of factors the slices before have.
_SLICE, _W, _BIAS, _A, _B = (tl.constexpr(i) for i in range(5))
_N, _RANK, _N_BEFORE, _RANKS_BEFORE, _ELEMENTS_BEFORE = (tl.constexpr(i) for i in range(5, 10))
_COLUMNS = tl.constexpr(10)


@triton.jit
def pick(number, first, second, third):
    """The one with this number."""
    return tl.where(number == 1, second, tl.where(number == 2, third, first))


@triton.jit
def before(number, first, second):
    """The sum of those with lower numbers."""
    return tl.where(number > 0, first, 0) + tl.where(number > 1, second, 0)


@triton.jit
def pointer(row, COLUMN: tl.constexpr, like_ptr):
    """An address in the table. Every tensor there begins at a multiple of 16 bytes; the launcher has looked."""
    return tl.multiple_of(tl.load(row + COLUMN).to(like_ptr.dtype), 16)


@triton.jit
def width(row, ALIGNED: tl.constexpr):
    """N in the table."""
    N = tl.load(row + _N).to(tl.int32)
    if ALIGNED:
        N = tl.multiple_of(N, 16)
    return N


@triton.jit
def set_of(sample, index_ptr, each):
    """Which factors serve a sample: what the index says, or each set as many consecutive samples. int64."""
    if index_ptr is None:
        item = (sample // each).to(tl.int64)
    else:
        item = tl.load(index_ptr + sample).to(tl.int64)
    return item


@triton.jit
def scale_of(number, sample, scale_ptr, stride_scale):
    """A sample's scale in a slice."""
    if scale_ptr is None:
        scale = 1.0
    else:
        scale = tl.load(scale_ptr + number * stride_scale + sample)
    return scale


@triton.jit
def expansion(
    b_ptr,  # [N, r]
    cols,  # [BLOCK_N]
    ranks,  # [BLOCK_R]
    N,
    r,
):
    """bᵀ for these columns, 0 outside. Shape: [BLOCK_R, BLOCK_N]."""
    mask = (ranks < r)[:, None] & (cols < N)[None, :]
    return tl.load(b_ptr + cols[None, :].to(tl.int64) * r + ranks[:, None], mask=mask, other=0.0)


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
        row = table_ptr + number * _COLUMNS
        w_ptr, N, r = pointer(row, _W, x_ptr), width(row, ALIGNED), tl.load(row + _RANK).to(tl.int32)
        a_ptr, b_ptr = pointer(row, _A, x_ptr), pointer(row, _B, x_ptr)
        start = tl.load(row + _N_BEFORE) * samples * T
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
        bias = tl.load(row + _BIAS)
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
        row = table_ptr + number * _COLUMNS
        base_ptr, N, r = pointer(row, _SLICE, x_ptr), width(row, ALIGNED), tl.load(row + _RANK).to(tl.int32)
        a_ptr, b_ptr = pointer(row, _A, x_ptr), pointer(row, _B, x_ptr)
        start = tl.load(row + _N_BEFORE) * samples * T
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


@triton.jit(do_not_specialize=["T", "samples", "each", "r_0", "r_1", "r_2", "stride_scale"])
def lowrank_shrink_kernel(
    x_ptr,  # [S, T, D]
    dy_0_ptr,  # [S, T, N_p]
    dy_1_ptr,
    dy_2_ptr,
    a_0_ptr,  # [G, r_p, D]
    a_1_ptr,
    a_2_ptr,
    b_0_ptr,  # [G, N_p, r_p]
    b_1_ptr,
    b_2_ptr,
    scale_ptr,  # [slices, S], or None
    index_ptr,  # [S] int64, or None
    g_ptr,  # [S, T, r_p], the slices behind one another
    u_ptr,  # likewise, or None
    table_ptr,  # [slices, 10] int64, or None
    T,
    D,
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
    SCALE_GRADIENT: tl.constexpr,  # which needs them where the scale is 0 too
    MULTIPLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,  # D is a multiple of BLOCK_K
    EVEN_N: tl.constexpr,  # every N is a multiple of BLOCK_K, and every rank BLOCK_N
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,  # the ranks, filled up
    GROUP_M: tl.constexpr,
):
    """``g_p[s] = dy_p[s] b_p[i]``, and ``u_p[s] = x[s] a_p[i]ᵀ`` by programs of its own."""
    tiles_m = tl.cdiv(T, BLOCK_M)
    sample, tile_m = tl.program_id(0) // tiles_m, tl.program_id(0) % tiles_m
    number, of_b = tl.program_id(1), tl.program_id(1) >= 0
    if u_ptr is not None:
        number, of_b = tl.program_id(1) // 2, tl.program_id(1) % 2 == 1
    if scale_ptr is not None:
        if not SCALE_GRADIENT:
            if tl.load(scale_ptr + number * stride_scale + sample) == 0:
                return
    if table_ptr is None:
        dy_ptr, N = pick(number, dy_0_ptr, dy_1_ptr, dy_2_ptr), pick(number, N_0, N_1, N_2)
        r, ranks_before = pick(number, r_0, r_1, r_2), before(number, r_0, r_1).to(tl.int64)
        a_ptr, b_ptr = pick(number, a_0_ptr, a_1_ptr, a_2_ptr), pick(number, b_0_ptr, b_1_ptr, b_2_ptr)
    else:
        row = table_ptr + number * _COLUMNS
        dy_ptr, N, r = pointer(row, _SLICE, x_ptr), width(row, ALIGNED), tl.load(row + _RANK).to(tl.int32)
        a_ptr, b_ptr = pointer(row, _A, x_ptr), pointer(row, _B, x_ptr)
        ranks_before = tl.load(row + _RANKS_BEFORE)
    r = tl.multiple_of(r, MULTIPLE)
    ranks_before = tl.multiple_of(ranks_before, MULTIPLE)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    ranks = tl.arange(0, BLOCK_N)
    item = set_of(sample, index_ptr, each)
    # One of the two products has no steps. A branch instead would take the shared memory of both.
    out = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    out = multiply(
        out, dy_ptr + sample.to(tl.int64) * T * N, b_ptr + item * N * r, rows, ranks, T, r, tl.where(of_b, N, 0), N, r,
        True, BLOCK_K, EVEN_N, PRECISION,
    )  # fmt: skip
    out_ptr = g_ptr
    if u_ptr is not None:
        out = multiply(
            out, x_ptr + sample.to(tl.int64) * stride_xs, a_ptr + item * (r * D), rows, ranks, T, r,
            tl.where(of_b, 0, D), stride_xm, D, False, BLOCK_K, EVEN, PRECISION,
        )  # fmt: skip
        out_ptr = tl.where(of_b, g_ptr, u_ptr)
    at = out_ptr + ranks_before * samples * T + (sample.to(tl.int64) * T + rows[:, None]) * r + ranks[None, :]
    mask = (rows < T)[:, None] & (ranks < r)[None, :]
    tl.store(at, convert(out, g_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T", "slices", "samples", "each", "r_0", "r_1", "r_2", "stride_scale"])
def lowrank_input_gradient_kernel(
    dy_0_ptr,  # [S, T, N_p], with BASE
    dy_1_ptr,
    dy_2_ptr,
    w_0_ptr,  # [N_p, D], with BASE
    w_1_ptr,
    w_2_ptr,
    a_0_ptr,  # [G, r_p, D]
    a_1_ptr,
    a_2_ptr,
    g_ptr,  # dy_p b_p [S, T, r_p], the slices behind one another
    scale_ptr,  # [slices, S], or None
    index_ptr,  # [S] int64, or None
    dx_ptr,  # [S, T, D]
    table_ptr,  # [slices, 10] int64, or None
    T,
    D,
    N_0,
    N_1,
    N_2,
    r_0,
    r_1,
    r_2,
    slices,
    samples,
    each,
    stride_scale,
    BASE: tl.constexpr,
    MULTIPLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,  # every N is a multiple of BLOCK_K, and D of BLOCK_N
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``dx = Σ_p scale_p·g_p a_p [+ Σ_p dy_p w_p]`` over the slices in their order; so their loops do not spill."""
    dtype = dx_ptr.dtype.element_ty
    per_sample = tl.cdiv(T, BLOCK_M) * tl.cdiv(D, BLOCK_N)
    sample = tl.program_id(0) // per_sample
    tile_m, tile_n = tile_of(tl.program_id(0) % per_sample, T, D, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ranks = tl.arange(0, BLOCK_R)
    row_mask, col_mask = (rows < T)[:, None], (cols < D)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    item = set_of(sample, index_ptr, each)
    for number in range(slices):
        if table_ptr is None:
            r = pick(number, r_0, r_1, r_2)
        else:
            r = tl.load(table_ptr + number * _COLUMNS + _RANK).to(tl.int32)
        r = tl.multiple_of(r, MULTIPLE)
        scale = scale_of(number, sample, scale_ptr, stride_scale)
        if scale * r != 0:  # without a scale too: where there is no branch LLVM unrolls the loop for AMD
            if table_ptr is None:
                a_ptr = pick(number, a_0_ptr, a_1_ptr, a_2_ptr)
                ranks_before = before(number, r_0, r_1).to(tl.int64)
            else:
                row = table_ptr + number * _COLUMNS
                a_ptr, ranks_before = pointer(row, _A, dx_ptr), tl.load(row + _RANKS_BEFORE)
            ranks_before = tl.multiple_of(ranks_before, MULTIPLE)
            at = g_ptr + ranks_before * samples * T + (sample.to(tl.int64) * T + rows[:, None]) * r + ranks[None, :]
            g = tl.load(at, mask=row_mask & (ranks < r)[None, :], other=0.0)  # [BLOCK_M, BLOCK_R]
            at = a_ptr + item * (r * D) + ranks[:, None] * D + cols[None, :]
            a = tl.load(at, mask=(ranks < r)[:, None] & col_mask, other=0.0)  # [BLOCK_R, BLOCK_N]
            acc = dot(convert(g.to(ACC) * scale, dtype), a, acc, PRECISION)
    if BASE:
        for number in range(slices):
            if table_ptr is None:
                dy_ptr, N = pick(number, dy_0_ptr, dy_1_ptr, dy_2_ptr), pick(number, N_0, N_1, N_2)
                w_ptr = pick(number, w_0_ptr, w_1_ptr, w_2_ptr)
            else:
                row = table_ptr + number * _COLUMNS
                dy_ptr, w_ptr = pointer(row, _SLICE, dx_ptr), pointer(row, _W, dx_ptr)
                N = width(row, ALIGNED)
            dy_ptr += sample.to(tl.int64) * T * N
            acc = multiply(acc, dy_ptr, w_ptr, rows, cols, T, D, N, N, D, True, BLOCK_K, EVEN, PRECISION)
    at = dx_ptr + (sample.to(tl.int64) * T + rows[:, None]) * D + cols[None, :]
    tl.store(at, convert(acc, dtype), mask=row_mask & col_mask)


@triton.jit(do_not_specialize=["T", "samples", "splits", "tiles_n", "r_0", "r_1", "r_2", "stride_scale"])
def lowrank_factor_gradient_kernel(
    x_ptr,  # [S, T, D]
    dy_0_ptr,  # [S, T, N_p]
    dy_1_ptr,
    dy_2_ptr,
    g_ptr,  # dy_p b_p [S, T, r_p], the slices behind one another
    u_ptr,  # x a_pᵀ, likewise
    scale_ptr,  # [slices, S], or None
    parts_ptr,  # [S, splits, elements] fp32: of every slice da [r_p, D], then db [N_p, r_p]; or None
    sums_ptr,  # [slices, S, splits] fp32: takes Σ g_p∘u_p, or None
    table_ptr,  # [slices, 10] int64, or None
    T,
    D,
    N_0,
    N_1,
    N_2,
    r_0,
    r_1,
    r_2,
    samples,
    splits,
    tiles_n,  # of columns, of the widest of D and N
    rows_per_split,
    elements,
    stride_xs,
    stride_xm,
    stride_scale,
    MULTIPLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,  # T, D and every N are multiples of their blocks
    BLOCK_M: tl.constexpr,  # tokens of a step
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # the ranks, filled up
    GROUP_M: tl.constexpr,
):
    """``da_p = scale_p·g_pᵀ x``, ``db_p = scale_p·dy_pᵀ u_p`` and ``Σ g_p∘u_p`` over one split of one sample's tokens,
    by programs of their own.

    With scale 0 there is no part of da and db: the sum leaves it out.
    """
    part = tl.program_id(0) // tiles_n
    sample, split = part // splits, part % splits
    number, kind = tl.program_id(1) // 3, tl.program_id(1) % 3
    scale = scale_of(number, sample, scale_ptr, stride_scale)
    if table_ptr is None:
        dy_ptr, N = pick(number, dy_0_ptr, dy_1_ptr, dy_2_ptr), pick(number, N_0, N_1, N_2)
        r, ranks_before = pick(number, r_0, r_1, r_2), before(number, r_0, r_1).to(tl.int64)
        elements_before = before(number, r_0 * (D + N_0), r_1 * (D + N_1)).to(tl.int64)
    else:
        row = table_ptr + number * _COLUMNS
        N, r = width(row, ALIGNED), tl.load(row + _RANK).to(tl.int32)
        ranks_before, elements_before = tl.load(row + _RANKS_BEFORE), tl.load(row + _ELEMENTS_BEFORE)
    r = tl.multiple_of(r, MULTIPLE)
    ranks_before = tl.multiple_of(ranks_before, MULTIPLE)
    tile_n = tl.program_id(0) % tiles_n
    ranks = tl.arange(0, BLOCK_K)
    rank_mask = (ranks < r)[None, :]
    first = split.to(tl.int64) * rows_per_split
    count = tl.minimum(T - first, rows_per_split).to(tl.int32)
    steps = tl.arange(0, BLOCK_M)
    rows = first + steps
    thin_at = ranks_before * samples * T + (sample.to(tl.int64) * T + rows[:, None]) * r + ranks[None, :]
    if kind == 2:
        if sums_ptr is not None:
            if tile_n == 0:
                total = tl.zeros((BLOCK_M,), ACC)
                for step in range(0, count, BLOCK_M):
                    mask = (steps < count - step)[:, None] & rank_mask
                    g = tl.load(g_ptr + thin_at + step * r, mask=mask, other=0.0).to(ACC)
                    u = tl.load(u_ptr + thin_at + step * r, mask=mask, other=0.0).to(ACC)
                    total += tl.sum(g * u, axis=1)
                place = sums_ptr + (number * samples + sample).to(tl.int64) * splits + split
                tl.store(place, tl.sum(total, axis=0))
    elif parts_ptr is not None:
        of_b = kind == 1
        if table_ptr is None:
            tall_ptr = tl.where(of_b, dy_ptr, x_ptr)
        else:  # as numbers: AMD's compiler does not choose between an argument and a pointer from elsewhere
            address = tl.where(of_b, tl.load(row + _SLICE), x_ptr.to(tl.int64))
            tall_ptr = tl.multiple_of(address.to(x_ptr.dtype), 16)
        tall_ptr += sample.to(tl.int64) * tl.where(of_b, tl.cast(T, tl.int64) * N, tl.cast(stride_xs, tl.int64))
        thin_ptr = tl.where(of_b, u_ptr, g_ptr)
        wide, stride_m = tl.where(of_b, N, D), tl.where(of_b, N, stride_xm)
        stride_col, stride_rank = tl.where(of_b, r, 1), tl.where(of_b, 1, D)
        out_ptr = parts_ptr + part.to(tl.int64) * elements + elements_before + tl.where(of_b, r * D, 0)
        wide = tl.where(scale == 0, 0, wide)
        count = tl.where(tile_n * BLOCK_N < wide, count, 0)  # the grid is as large as the widest needs
        cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        col_mask = (cols < wide)[:, None]
        tall_tile = tall_ptr + rows[None, :] * stride_m + cols[:, None]  # [BLOCK_N, BLOCK_M]
        thin_tile = thin_ptr + thin_at  # [BLOCK_M, BLOCK_K]
        acc = tl.zeros((BLOCK_N, BLOCK_K), ACC)
        for step in range(0, count, BLOCK_M):
            if EVEN:
                tall = tl.load(tall_tile)
                thin = tl.load(thin_tile, mask=rank_mask, other=0.0)
            else:
                inside = steps < count - step
                tall = tl.load(tall_tile, mask=col_mask & inside[None, :], other=0.0)
                thin = tl.load(thin_tile, mask=inside[:, None] & rank_mask, other=0.0)
            acc = dot(tall, thin, acc, PRECISION)
            tall_tile += BLOCK_M * tl.cast(stride_m, tl.int64)
            thin_tile += BLOCK_M * r
        at = out_ptr + cols[:, None].to(tl.int64) * stride_col + ranks[None, :] * stride_rank
        tl.store(at, acc * scale, mask=col_mask & rank_mask)


@triton.jit
def add_rows(
    acc,  # [P]
    columns,  # [P] pointers into the first row
    stride,
    count,
    mask,  # [P]
    BLOCK_R: tl.constexpr,
):
    """``acc`` plus the sum of so many rows, in their order by BLOCK_R."""
    steps = tl.arange(0, BLOCK_R)
    for row in range(0, count, BLOCK_R):
        inside = (steps < count - row)[:, None] & mask[None, :]
        places = columns[None, :] + (row + steps)[:, None].to(tl.int64) * stride
        acc += tl.sum(tl.load(places, mask=inside, other=0.0), 0)
    return acc


@triton.jit(
    do_not_specialize=[
        "T",
        "blocks",
        "sets",
        "samples",
        "splits",
        "each",
        "r_0",
        "r_1",
        "r_2",
        "stride_scale",
    ]
)
def lowrank_sum_kernel(
    parts_ptr,  # [S, splits, elements] fp32
    scale_ptr,  # [slices, S], or None
    index_ptr,  # [S] int64, or None
    out_ptr,  # of every slice da [G, r_p, D], then db [G, N_p, r_p]
    sums_ptr,  # [slices, S, splits], or None
    dscale_ptr,  # [slices, S]
    table_ptr,  # [slices, 10] int64, or None
    T,
    D,
    N_0,
    N_1,
    N_2,
    r_0,
    r_1,
    r_2,
    blocks,  # of the elements of a set's factors of the largest slice
    sets,
    samples,
    splits,
    each,
    elements,
    stride_scale,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The factors' gradients from their parts, over the samples of a set in their order; 0 for a set without any.

    Programs behind those of the sets add up dscale.
    """
    number = tl.program_id(1)
    item = tl.program_id(0) // blocks
    cols = (tl.program_id(0) % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    acc = tl.zeros((BLOCK_P,), ACC)
    if item == sets:
        if sums_ptr is not None:
            places = (number * samples + cols).to(tl.int64)
            acc = add_rows(acc, sums_ptr + places * splits, 1, splits, cols < samples, BLOCK_R)
            tl.store(dscale_ptr + places, acc, mask=cols < samples)
    elif parts_ptr is not None:
        if table_ptr is None:
            N, r = pick(number, N_0, N_1, N_2), pick(number, r_0, r_1, r_2)
            elements_before = before(number, r_0 * (D + N_0), r_1 * (D + N_1)).to(tl.int64)
        else:
            row = table_ptr + number * _COLUMNS
            N, r = tl.load(row + _N).to(tl.int32), tl.load(row + _RANK).to(tl.int32)
            elements_before = tl.load(row + _ELEMENTS_BEFORE)
        inside = cols < r * (D + N)
        first, end = item * each, (item + 1) * each
        if index_ptr is not None:
            first, end = 0, samples
        for sample in range(first, end):
            count = splits
            if index_ptr is not None:
                count = tl.where(tl.load(index_ptr + sample) == item, count, 0)
            if scale_ptr is not None:
                count = tl.where(tl.load(scale_ptr + number * stride_scale + sample) == 0, 0, count)
            part = tl.cast(sample, tl.int64) * splits * elements + elements_before
            acc = add_rows(acc, parts_ptr + part + cols, elements, count, inside, BLOCK_R)
        of_a = cols < r * D
        at = tl.where(of_a, item.to(tl.int64) * r * D, (sets.to(tl.int64) - 1) * r * D + item.to(tl.int64) * N * r)
        tl.store(out_ptr + elements_before * sets + at + cols, convert(acc, out_ptr.dtype.element_ty), mask=inside)
