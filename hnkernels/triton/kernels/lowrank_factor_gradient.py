"""The gradients of low-rank factors and scales, in parts and added up; see ``lowrank_slices``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton._compat import convert, dot
from hnkernels.triton.autotune import choose
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.arguments import acc_dtype, product, tl_dtype
from hnkernels.triton.kernels.lowrank_arguments import LowRank
from hnkernels.triton.kernels.lowrank_slices import (
    AT_SLICE,
    elements_before,
    entry,
    pick,
    rank_of,
    ranks_before,
    scale_of,
    width_of,
)
from hnkernels.triton.launch import launch
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import row_tiles, splits


@triton.jit(do_not_specialize=["T", "samples", "splits", "tiles_n", "r_0", "r_1", "r_2", "stride_scale"])
def lowrank_factor_gradient_kernel(
    x_ptr,  # [S, T, D], with parts
    dy_0_ptr,  # [S, T, N_p], with parts
    dy_1_ptr,
    dy_2_ptr,
    g_ptr,  # dy_p b_p [S, T, r_p], the slices one after another
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
    wait_for_launches_before()
    part = tl.program_id(0) // tiles_n
    sample, split = part // splits, part % splits
    slice_index, kind = tl.program_id(1) // 3, tl.program_id(1) % 3
    scale = scale_of(slice_index, sample, scale_ptr, stride_scale)
    N = width_of(slice_index, table_ptr, N_0, N_1, N_2, ALIGNED)
    r = rank_of(slice_index, table_ptr, r_0, r_1, r_2, MULTIPLE)
    tile_n = tl.program_id(0) % tiles_n
    ranks = tl.arange(0, BLOCK_K)
    rank_mask = (ranks < r)[None, :]
    first = split.to(tl.int64) * rows_per_split
    count = tl.minimum(T - first, rows_per_split).to(tl.int32)
    steps = tl.arange(0, BLOCK_M)
    rows = first + steps
    start = ranks_before(slice_index, table_ptr, r_0, r_1, MULTIPLE) * samples * T
    thin_at = start + (sample.to(tl.int64) * T + rows[:, None]) * r + ranks[None, :]
    if kind == 2:
        if sums_ptr is not None:
            if tile_n == 0:
                total = tl.zeros((BLOCK_M,), ACC)
                for step in range(0, count, BLOCK_M):
                    mask = (steps < count - step)[:, None] & rank_mask
                    g = tl.load(g_ptr + thin_at + step * r, mask=mask, other=0.0).to(ACC)
                    u = tl.load(u_ptr + thin_at + step * r, mask=mask, other=0.0).to(ACC)
                    total += tl.sum(g * u, axis=1)
                place = sums_ptr + (slice_index * samples + sample).to(tl.int64) * splits + split
                tl.store(place, tl.sum(total, axis=0))
    elif parts_ptr is not None:
        of_b = kind == 1
        if table_ptr is None:
            tall_ptr = tl.where(of_b, pick(slice_index, dy_0_ptr, dy_1_ptr, dy_2_ptr), x_ptr)
        else:  # as numbers: AMD's compiler does not choose between an argument and a pointer from elsewhere
            address = tl.where(of_b, entry(slice_index, table_ptr, AT_SLICE), x_ptr.to(tl.int64))
            tall_ptr = tl.multiple_of(address.to(x_ptr.dtype), 16)
        tall_ptr += sample.to(tl.int64) * tl.where(of_b, tl.cast(T, tl.int64) * N, tl.cast(stride_xs, tl.int64))
        thin_ptr = tl.where(of_b, u_ptr, g_ptr)
        wide, stride_m = tl.where(of_b, N, D), tl.where(of_b, N, stride_xm)
        stride_col, stride_rank = tl.where(of_b, r, 1), tl.where(of_b, 1, D)
        slice_at = elements_before(slice_index, table_ptr, D, N_0, N_1, r_0, r_1)
        out_ptr = parts_ptr + part.to(tl.int64) * elements + slice_at + tl.where(of_b, r * D, 0)
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


def lowrank_factor_gradients(
    slices: LowRank,
    table: Tensor | None,
    dy: Sequence[Tensor],
    g: Tensor,
    u: Tensor,
    *,
    factors: bool,
    scale: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """``lowrank_factor_gradient_kernel``: dy [S, T, n_p], g and u flat → the factors' gradients in parts
    [S, splits, elements], and those of the scale [slices, S, splits], each if it is asked for. fp32."""
    x = slices.x
    samples, tokens, d = x.shape
    widest = max(d, *slices.widths)
    target = target_of(x.device)
    tiles = choose("lowrank factor gradient", tokens, widest, slices.block_r, x.dtype, target, slices.block_r)
    columns = triton.cdiv(widest, tiles.block_n)
    # The fewer the ranks the less a part costs, and the more of them are worth it.
    programs = 2 * columns * len(slices.a) * max(samples, 1)
    count = splits(tokens, triton.cdiv(programs * slices.block_r, 256), tiles.block_m, target)
    per_split = max(triton.cdiv(triton.cdiv(tokens, count), tiles.block_m), 1) * tiles.block_m
    count = triton.cdiv(tokens, per_split)
    acc = acc_dtype(x.dtype)
    parts = x.new_empty(samples, count, sum(slices.elements), dtype=acc) if factors else None
    sums = x.new_empty(len(slices.a), samples, count, dtype=acc) if scale else None
    launch(
        lowrank_factor_gradient_kernel,
        (samples * count * columns, 3 * len(slices.a)),
        tiles=tiles,
        flops=2 * samples * tokens * sum(slices.elements) if factors else 0,
        steps=triton.cdiv(per_split, tiles.block_m),
        writes=("parts_ptr", "sums_ptr"),
        addressed=slices.addressed(dy if factors else ()),
        x_ptr=x if factors else None, **slices.pointers("dy", dy if factors else [None]),
        g_ptr=g, u_ptr=u, parts_ptr=parts, sums_ptr=sums, table_ptr=table, **slices.arguments(), D=d, splits=count,
        tiles_n=columns, rows_per_split=per_split, elements=sum(slices.elements), stride_xs=x.stride(0),
        stride_xm=x.stride(1),
        **slices.alignment(), **product(x.dtype),
        EVEN=tokens % tiles.block_m == d % tiles.block_n == 0 and all(n % tiles.block_n == 0 for n in slices.widths),
    )  # fmt: skip
    return parts, sums


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
        "samples_per_set",
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
    samples_per_set,
    elements,
    stride_scale,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The factors' gradients from their parts, over the samples of a set in their order; 0 for a set without any.

    Programs after those of the sets add up dscale.
    """
    wait_for_launches_before()
    slice_index = tl.program_id(1)
    set_index = tl.program_id(0) // blocks
    cols = (tl.program_id(0) % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    acc = tl.zeros((BLOCK_P,), ACC)
    if set_index == sets:
        if sums_ptr is not None:
            places = (slice_index * samples + cols).to(tl.int64)
            acc = add_rows(acc, sums_ptr + places * splits, 1, splits, cols < samples, BLOCK_R)
            tl.store(dscale_ptr + places, acc, mask=cols < samples)
    elif parts_ptr is not None:
        N = width_of(slice_index, table_ptr, N_0, N_1, N_2, False)
        r = rank_of(slice_index, table_ptr, r_0, r_1, r_2, 1)
        slice_at = elements_before(slice_index, table_ptr, D, N_0, N_1, r_0, r_1)
        inside = cols < r * (D + N)
        first, end = set_index * samples_per_set, (set_index + 1) * samples_per_set
        if index_ptr is not None:
            first, end = 0, samples
        for sample in range(first, end):
            count = splits
            if index_ptr is not None:
                count = tl.where(tl.load(index_ptr + sample) == set_index, count, 0)
            if scale_ptr is not None:
                count = tl.where(tl.load(scale_ptr + slice_index * stride_scale + sample) == 0, 0, count)
            part = tl.cast(sample, tl.int64) * splits * elements + slice_at
            acc = add_rows(acc, parts_ptr + part + cols, elements, count, inside, BLOCK_R)
        of_a = cols < r * D
        at = tl.where(
            of_a, set_index.to(tl.int64) * r * D, (sets.to(tl.int64) - 1) * r * D + set_index.to(tl.int64) * N * r
        )
        tl.store(out_ptr + slice_at * sets + at + cols, convert(acc, out_ptr.dtype.element_ty), mask=inside)


def lowrank_sums(
    slices: LowRank, table: Tensor | None, parts: Tensor | None, sums: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """``lowrank_sum_kernel``: what ``lowrank_factor_gradients`` made, added up: da [G, r_p, d] and db [G, n_p, r_p] of
    every slice, flat, and dscale [slices, S]."""
    x = slices.x
    samples = x.shape[0]
    flat = None if parts is None else x.new_empty(slices.sets * sum(slices.elements))
    dscale = None if sums is None else sums.new_empty(sums.shape[:2])
    sets = 0 if parts is None else slices.sets
    count = 0 if parts is None else parts.shape[1]
    if sums is not None:
        count = sums.shape[2]
    elements = max(samples, 1) if parts is None else max(*slices.elements, samples)
    block = row_tiles("lowrank sum", count, elements, target_of(x.device))
    blocks = triton.cdiv(elements, block.columns)
    if parts is None:
        slices = replace(slices, scale=None, index=None)
    launch(
        lowrank_sum_kernel,
        (blocks * (sets + (sums is not None)), len(slices.a)),
        writes=("out_ptr", "dscale_ptr"),
        parts_ptr=parts, out_ptr=flat, sums_ptr=sums, dscale_ptr=dscale,
        table_ptr=table, **slices.arguments(), **slices.sets_arguments(),
        D=x.shape[2], blocks=blocks, sets=sets, splits=count,
        elements=sum(slices.elements), ACC=tl_dtype(acc_dtype(x.dtype)),
        BLOCK_R=block.rows, BLOCK_P=block.columns, num_warps=block.warps,
    )  # fmt: skip
    return flat, dscale
