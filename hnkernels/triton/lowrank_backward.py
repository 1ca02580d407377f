"""The gradients of linears with low-rank weights by sample; see ``lowrank_slices``."""

from __future__ import annotations

import triton
import triton.language as tl

from hnkernels.triton._compat import convert, dot
from hnkernels.triton.lowrank_slices import (
    AT_A,
    AT_B,
    AT_ELEMENTS_BEFORE,
    AT_N,
    AT_RANK,
    AT_RANKS_BEFORE,
    AT_SLICE,
    AT_W,
    COLUMNS_IN_TABLE,
    before,
    pick,
    pointer,
    scale_of,
    set_of,
    width,
)
from hnkernels.triton.tiles import multiply, tile_of


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
        row = table_ptr + number * COLUMNS_IN_TABLE
        dy_ptr, N, r = pointer(row, AT_SLICE, x_ptr), width(row, ALIGNED), tl.load(row + AT_RANK).to(tl.int32)
        a_ptr, b_ptr = pointer(row, AT_A, x_ptr), pointer(row, AT_B, x_ptr)
        ranks_before = tl.load(row + AT_RANKS_BEFORE)
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
            r = tl.load(table_ptr + number * COLUMNS_IN_TABLE + AT_RANK).to(tl.int32)
        r = tl.multiple_of(r, MULTIPLE)
        scale = scale_of(number, sample, scale_ptr, stride_scale)
        if scale * r != 0:  # without a scale too: where there is no branch LLVM unrolls the loop for AMD
            if table_ptr is None:
                a_ptr = pick(number, a_0_ptr, a_1_ptr, a_2_ptr)
                ranks_before = before(number, r_0, r_1).to(tl.int64)
            else:
                row = table_ptr + number * COLUMNS_IN_TABLE
                a_ptr, ranks_before = pointer(row, AT_A, dx_ptr), tl.load(row + AT_RANKS_BEFORE)
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
                row = table_ptr + number * COLUMNS_IN_TABLE
                dy_ptr, w_ptr = pointer(row, AT_SLICE, dx_ptr), pointer(row, AT_W, dx_ptr)
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
        row = table_ptr + number * COLUMNS_IN_TABLE
        N, r = width(row, ALIGNED), tl.load(row + AT_RANK).to(tl.int32)
        ranks_before, elements_before = tl.load(row + AT_RANKS_BEFORE), tl.load(row + AT_ELEMENTS_BEFORE)
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
            address = tl.where(of_b, tl.load(row + AT_SLICE), x_ptr.to(tl.int64))
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
            row = table_ptr + number * COLUMNS_IN_TABLE
            N, r = tl.load(row + AT_N).to(tl.int32), tl.load(row + AT_RANK).to(tl.int32)
            elements_before = tl.load(row + AT_ELEMENTS_BEFORE)
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
