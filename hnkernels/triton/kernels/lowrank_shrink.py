"""What has ranks for columns: ``x Aᵀ``, and ``dy B``, which the gradients start from; see ``lowrank_slices``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton._compat import convert
from hnkernels.triton.autotune import choose
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.arguments import acc_dtype, product
from hnkernels.triton.kernels.lowrank_arguments import LowRank
from hnkernels.triton.kernels.lowrank_slices import (
    AT_A,
    AT_B,
    AT_SLICE,
    rank_of,
    ranks_before,
    set_of,
    tensor_of,
    width_of,
)
from hnkernels.triton.kernels.tiles import multiply
from hnkernels.triton.launch import launch
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import Tiles


@triton.jit(do_not_specialize=["T", "samples", "samples_per_set", "r_0", "r_1", "r_2", "stride_scale"])
def lowrank_shrink_kernel(
    x_ptr,  # [S, T, D], with u
    dy_0_ptr,  # [S, T, N_p], with g
    dy_1_ptr,
    dy_2_ptr,
    a_0_ptr,  # [G, r_p, D], with u
    a_1_ptr,
    a_2_ptr,
    b_0_ptr,  # [G, N_p, r_p], with g
    b_1_ptr,
    b_2_ptr,
    scale_ptr,  # [slices, S], or None where they are needed whatever the scale
    index_ptr,  # [S] int64, or None
    g_ptr,  # [S, T, r_p], the slices one after another; or None
    u_ptr,  # likewise
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
    samples_per_set,
    stride_xs,
    stride_xm,
    stride_scale,
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
    """``g_p[s] = dy_p[s] b_p[i]`` and ``u_p[s] = x[s] a_p[i]ᵀ``; where both are wanted, by programs of their own."""
    wait_for_launches_before()
    tiles_m = tl.cdiv(T, BLOCK_M)
    sample, tile_m = tl.program_id(0) // tiles_m, tl.program_id(0) % tiles_m
    slice_index, of_b = tl.program_id(1), tl.program_id(1) >= 0
    out_ptr, depth = g_ptr, D
    if u_ptr is not None:
        out_ptr = u_ptr
        if g_ptr is not None:
            slice_index, of_b = tl.program_id(1) // 2, tl.program_id(1) % 2 == 1
            out_ptr, depth = tl.where(of_b, g_ptr, u_ptr), tl.where(of_b, 0, D)
    if scale_ptr is not None:
        if tl.load(scale_ptr + slice_index * stride_scale + sample) == 0:
            return
    r = rank_of(slice_index, table_ptr, r_0, r_1, r_2, MULTIPLE)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    ranks = tl.arange(0, BLOCK_N)
    set_index = set_of(sample, index_ptr, samples_per_set)
    # One of the two products has no steps. A branch instead would take the shared memory of both.
    out = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    if g_ptr is not None:
        dy_ptr = tensor_of(slice_index, table_ptr, AT_SLICE, g_ptr, dy_0_ptr, dy_1_ptr, dy_2_ptr)
        b_ptr = tensor_of(slice_index, table_ptr, AT_B, g_ptr, b_0_ptr, b_1_ptr, b_2_ptr)
        N = width_of(slice_index, table_ptr, N_0, N_1, N_2, ALIGNED)
        out = multiply(
            out, dy_ptr + sample.to(tl.int64) * T * N, b_ptr + set_index * N * r, rows, ranks, T, r,
            tl.where(of_b, N, 0), N, r, True, BLOCK_K, EVEN_N, PRECISION,
        )  # fmt: skip
    if u_ptr is not None:
        a_ptr = tensor_of(slice_index, table_ptr, AT_A, x_ptr, a_0_ptr, a_1_ptr, a_2_ptr)
        out = multiply(
            out, x_ptr + sample.to(tl.int64) * stride_xs, a_ptr + set_index * (r * D), rows, ranks, T, r, depth,
            stride_xm, D, False, BLOCK_K, EVEN, PRECISION,
        )  # fmt: skip
    start = ranks_before(slice_index, table_ptr, r_0, r_1, MULTIPLE) * samples * T
    at = out_ptr + start + (sample.to(tl.int64) * T + rows[:, None]) * r + ranks[None, :]
    mask = (rows < T)[:, None] & (ranks < r)[None, :]
    tl.store(at, convert(out, out_ptr.dtype.element_ty), mask=mask)


def lowrank_shrink(
    slices: LowRank, table: Tensor | None, dy: Sequence[Tensor], *, with_u: bool, scale_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """``lowrank_shrink_kernel``: dy [S, T, n_p] → g_p = dy_p b_p [S, T, r_p] flat, and u_p = x a_pᵀ likewise.

    ``scale_gradient`` asks for them where the scale is 0 too.
    """
    if scale_gradient:
        slices = replace(slices, scale=None)
    g = slices.through_ranks()
    u = torch.empty_like(g) if with_u else None
    _launch(slices, table, dy, g, u)
    return g, u


def lowrank_shrink_x(slices: LowRank, table: Tensor | None) -> Tensor:
    """``lowrank_shrink_kernel``: x [S, T, d] → u_p = x a_pᵀ [S, T, r_p] flat, in what it is added up in."""
    u = slices.through_ranks(acc_dtype(slices.x.dtype))
    _launch(slices, table, (), None, u)
    return u


def _launch(slices: LowRank, table: Tensor | None, dy: Sequence[Tensor], g: Tensor | None, u: Tensor | None) -> None:
    x, none = slices.x, (None,)
    a, b = (none if t is None else each for t, each in ((u, slices.a), (g, slices.b)))
    samples, tokens, d = x.shape
    depths = [d] * (u is not None) + slices.widths * (g is not None)
    elements = [
        (d * (u is not None) + n * (g is not None)) * r for n, r in zip(slices.widths, slices.ranks, strict=True)
    ]
    tiles = lowrank_shrink_tiles(slices, max(depths))
    launch(
        lowrank_shrink_kernel,
        (samples * triton.cdiv(tokens, tiles.block_m), len(slices.a) * ((g is not None) + (u is not None))),
        tiles=tiles,
        flops=2 * samples * tokens * sum(elements),
        steps=triton.cdiv(max(depths), tiles.block_k),
        writes=("g_ptr", "u_ptr"),
        addressed=slices.addressed(dy, a, b),
        x_ptr=None if u is None else x, **slices.pointers("dy", dy or none), **slices.pointers("a", a),
        **slices.pointers("b", b), g_ptr=g, u_ptr=u, table_ptr=table, **slices.arguments(), **slices.sets_arguments(),
        D=d, stride_xs=x.stride(0), stride_xm=x.stride(1), **slices.alignment(),
        **product(x.dtype), EVEN=d % tiles.block_k == 0,
        EVEN_N=all(n % tiles.block_k == 0 for n in slices.widths) and all(r == slices.block_r for r in slices.ranks),
    )  # fmt: skip


def lowrank_shrink_tiles(slices: LowRank, depth: int) -> Tiles:
    """Its tiles where the longest product is so deep."""
    target, block_r = target_of(slices.x.device), slices.block_r
    return choose("lowrank shrink", slices.rows, block_r, depth, slices.x.dtype, target, block_r)
