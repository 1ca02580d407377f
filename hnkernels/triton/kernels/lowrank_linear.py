"""Linears with low-rank weights by sample, with the linear itself in the launch; see ``lowrank_slices``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton._compat import convert, dot
from hnkernels.triton.autotune import choose
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.arguments import product
from hnkernels.triton.kernels.lowrank_arguments import LowRank, kept_table, outputs
from hnkernels.triton.kernels.lowrank_shrink import lowrank_shrink_tiles, lowrank_shrink_x
from hnkernels.triton.kernels.lowrank_slices import (
    AT_A,
    AT_B,
    AT_BIAS,
    AT_W,
    before,
    entry,
    expansion,
    out_of,
    pick,
    rank_of,
    ranks_before,
    scale_of,
    set_of,
    tensor_of,
    width_of,
)
from hnkernels.triton.kernels.tiles import multiply, tile_of
from hnkernels.triton.launch import launch
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import Tiles, ranks_pay_a_launch


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


@triton.jit(do_not_specialize=["T", "tiles_n", "samples", "samples_per_set", "r_0", "r_1", "r_2", "stride_scale"])
def lowrank_forward_kernel(
    x_ptr,  # [S, T, K]
    w_0_ptr,  # [N_p, K]
    w_1_ptr,
    w_2_ptr,
    bias_0_ptr,  # [N_p], or None for all
    bias_1_ptr,
    bias_2_ptr,
    a_0_ptr,  # [G, r_p, K], without u
    a_1_ptr,
    a_2_ptr,
    b_0_ptr,  # [G, N_p, r_p]
    b_1_ptr,
    b_2_ptr,
    scale_ptr,  # [slices, S], or None
    index_ptr,  # [S] int64, or None
    u_ptr,  # [S, T, r_p] fp32: x a_pᵀ, the slices one after another, where a launch before has made it; or None
    out_0_ptr,  # [S, T, N_p]; with a table flat, the slices one after another
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
    samples_per_set,
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
    """``out_p[s] = x[s] w_pᵀ + bias_p + scale_p[s]·(x[s] a_p[i]ᵀ) b_p[i]ᵀ``, the parentheses read where there is a u.

    The tiles of all slices lie side by side in the grid: those that run together share their rows of x.
    """
    wait_for_launches_before()
    dtype = x_ptr.dtype.element_ty
    per_sample = tl.cdiv(T, BLOCK_M) * tiles_n
    sample = tl.program_id(0) // per_sample
    tile_m, column = tile_of(tl.program_id(0) % per_sample, T, tiles_n * BLOCK_N, BLOCK_M, BLOCK_N, GROUP_M)
    if table_ptr is None:
        first = tl.cdiv(N_0, BLOCK_N)
        second = tl.cdiv(N_1, BLOCK_N)
        slice_index = (column >= first).to(tl.int32) + (column >= first + second).to(tl.int32)
        tile_n = column - before(slice_index, first, second)
    else:
        slice_index, tile_n = tl.load(tiles_ptr + 2 * column), tl.load(tiles_ptr + 2 * column + 1)
    w_ptr = tensor_of(slice_index, table_ptr, AT_W, x_ptr, w_0_ptr, w_1_ptr, w_2_ptr)
    b_ptr = tensor_of(slice_index, table_ptr, AT_B, x_ptr, b_0_ptr, b_1_ptr, b_2_ptr)
    out_ptr = out_of(slice_index, table_ptr, out_0_ptr, out_1_ptr, out_2_ptr, samples, T, ALIGNED)
    N = width_of(slice_index, table_ptr, N_0, N_1, N_2, ALIGNED)
    r = rank_of(slice_index, table_ptr, r_0, r_1, r_2, MULTIPLE)
    x_ptr += sample.to(tl.int64) * stride_xs
    set_index = set_of(sample, index_ptr, samples_per_set)
    scale = scale_of(slice_index, sample, scale_ptr, stride_scale)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ranks = tl.arange(0, BLOCK_R)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    depth = K
    if scale_ptr is not None:
        depth = tl.where(scale == 0, 0, K)
    u = tl.zeros((BLOCK_M, BLOCK_R), ACC)
    if u_ptr is not None:
        acc = multiply(acc, x_ptr, w_ptr, rows, cols, T, N, K, stride_xm, K, False, BLOCK_K, EVEN, PRECISION)
    else:
        if scale_ptr is not None:
            # One of the two products has no steps. A branch instead would take the shared memory of both.
            acc = multiply(
                acc, x_ptr, w_ptr, rows, cols, T, N, K - depth, stride_xm, K, False, BLOCK_K, EVEN, PRECISION
            )
        a_ptr = tensor_of(slice_index, table_ptr, AT_A, x_ptr, a_0_ptr, a_1_ptr, a_2_ptr) + set_index * (r * K)
        acc, u = multiply_both(
            acc, u, x_ptr, w_ptr, a_ptr, rows, cols, ranks, T, N, r, K, depth, stride_xm, BLOCK_K, EVEN, PRECISION
        )  # fmt: skip
    if depth > 0:
        if u_ptr is not None:
            start = ranks_before(slice_index, table_ptr, r_0, r_1, MULTIPLE) * samples * T
            u_at = u_ptr + start + (sample.to(tl.int64) * T + rows[:, None]) * r + ranks[None, :]
            u = tl.load(u_at, mask=(rows < T)[:, None] & (ranks < r)[None, :], other=0.0)
        b = expansion(b_ptr + set_index * N * r, cols, ranks, N, r)
        acc = dot(convert(u * scale, dtype), b, acc, PRECISION)
    if table_ptr is None:
        if bias_0_ptr is not None:
            bias_ptr = pick(slice_index, bias_0_ptr, bias_1_ptr, bias_2_ptr)
            acc += tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(ACC)[None, :]
    else:
        bias = entry(slice_index, table_ptr, AT_BIAS)
        if bias != 0:
            acc += tl.load(bias.to(x_ptr.dtype) + cols, mask=cols < N, other=0.0).to(ACC)[None, :]
    mask = (rows < T)[:, None] & (cols < N)[None, :]
    at = out_ptr + (sample.to(tl.int64) * T + rows[:, None]) * N + cols[None, :]
    tl.store(at, convert(acc, dtype), mask=mask)


def lowrank_linear(slices: LowRank, w: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """``lowrank_forward_kernel``: w [n_p, d], bias [n_p] → [S, T, n_p] for every slice, or flat with a table.

    By the model of what tiles cost, x a_pᵀ is a launch of its own where the columns have so many tiles that it pays.
    """
    x = slices.x
    samples, tokens, d = x.shape
    target = target_of(x.device)

    def tiles_of(kind: str) -> Tiles:
        return choose(kind, slices.rows, max(slices.widths), d, x.dtype, target, slices.block_r)

    tiles, expand = tiles_of("lowrank forward"), tiles_of("lowrank expand")
    shrink = lowrank_shrink_tiles(slices, d)
    ranks_first = ranks_pay_a_launch(
        samples, tokens, d, slices.widths, slices.block_r, x.dtype, tiles, expand, shrink, target
    )  # fmt: skip
    table, u = slices.table(w=w, bias=biases, keep=True), None
    if ranks_first:
        tiles, u = expand, lowrank_shrink_x(slices, table)
    per_slice = [triton.cdiv(n, tiles.block_n) for n in slices.widths]
    tile_table = None
    if slices.tabled:
        places = tuple((p, i) for p, count in enumerate(per_slice) for i in range(count))
        tile_table = kept_table(places, x.device, torch.int32)
    elif any(t is not None for t in biases):  # a bias on some only is rare: the others' is 0
        biases = [x.new_zeros(n) if t is None else t for t, n in zip(biases, slices.widths, strict=True)]
    a = slices.a if u is None else (None,)
    elements = slices.elements if u is None else [t.numel() // max(slices.sets, 1) for t in slices.b]
    outs, out_arguments = outputs(slices)
    launch(
        lowrank_forward_kernel,
        (samples * triton.cdiv(tokens, tiles.block_m) * sum(per_slice),),
        tiles=tiles,
        flops=2 * samples * tokens * (d * sum(slices.widths) + sum(elements)),
        steps=triton.cdiv(d, tiles.block_k),
        writes=("out_0_ptr", "out_1_ptr", "out_2_ptr"),
        addressed=slices.addressed(w, biases, a, slices.b),
        x_ptr=x, **slices.pointers("w", w), **slices.pointers("bias", biases), **slices.pointers("a", a),
        **slices.pointers("b", slices.b), **out_arguments, table_ptr=table, u_ptr=u,
        tiles_ptr=tile_table, **slices.arguments(), **slices.sets_arguments(), K=d, tiles_n=sum(per_slice),
        stride_xs=x.stride(0), stride_xm=x.stride(1), BLOCK_R=slices.block_r, **slices.alignment(),
        **product(x.dtype), EVEN=d % tiles.block_k == 0,
    )  # fmt: skip
    return outs
