"""The low-rank change alone, added to the output of a linear that computes by itself; see ``lowrank_slices``."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton._compat import convert, dot
from hnkernels.triton.autotune import choose
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.arguments import product
from hnkernels.triton.kernels.lowrank_arguments import LowRank, outputs
from hnkernels.triton.kernels.lowrank_slices import (
    AT_A,
    AT_B,
    AT_SLICE,
    expansion,
    out_of,
    rank_of,
    scale_of,
    set_of,
    tensor_of,
    width_of,
)
from hnkernels.triton.kernels.tiles import multiply
from hnkernels.triton.launch import launch
from hnkernels.triton.target import target_of


@triton.jit(do_not_specialize=["T", "samples", "samples_per_set", "r_0", "r_1", "r_2", "stride_scale"])
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
    out_0_ptr,  # [S, T, N_p]; with a table flat, the slices one after another
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
    samples_per_set,
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
    wait_for_launches_before()
    dtype = x_ptr.dtype.element_ty
    tiles_m = tl.cdiv(T, BLOCK_M)
    sample, slice_index = tl.program_id(0) // tiles_m, tl.program_id(1)
    base_ptr = tensor_of(slice_index, table_ptr, AT_SLICE, x_ptr, base_0_ptr, base_1_ptr, base_2_ptr)
    a_ptr = tensor_of(slice_index, table_ptr, AT_A, x_ptr, a_0_ptr, a_1_ptr, a_2_ptr)
    b_ptr = tensor_of(slice_index, table_ptr, AT_B, x_ptr, b_0_ptr, b_1_ptr, b_2_ptr)
    out_ptr = out_of(slice_index, table_ptr, out_0_ptr, out_1_ptr, out_2_ptr, samples, T, ALIGNED)
    N = width_of(slice_index, table_ptr, N_0, N_1, N_2, ALIGNED)
    r = rank_of(slice_index, table_ptr, r_0, r_1, r_2, MULTIPLE)
    set_index = set_of(sample, index_ptr, samples_per_set)
    scale = scale_of(slice_index, sample, scale_ptr, stride_scale)
    plain = tl.where(scale == 0, N, 0)
    rows = (tl.program_id(0) % tiles_m).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    ranks = tl.arange(0, BLOCK_R)
    u = tl.zeros((BLOCK_M, BLOCK_R), ACC)
    u = multiply(
        u, x_ptr + sample.to(tl.int64) * stride_xs, a_ptr + set_index * (r * K), rows, ranks, T, r,
        tl.where(scale == 0, 0, K), stride_xm, K, False, BLOCK_K, EVEN, PRECISION,
    )  # fmt: skip
    u = convert(u * scale, dtype)
    b_ptr += set_index * N * r
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


def lowrank_add(slices: LowRank, bases: Sequence[Tensor]) -> list[Tensor]:
    """``lowrank_add_kernel``: bases [S, T, n_p] → the same for every slice, or flat with a table."""
    x = slices.x
    samples, tokens, d = x.shape
    target, block_r = target_of(x.device), slices.block_r
    tiles = choose("lowrank add", slices.rows, block_r, d, x.dtype, target, block_r)
    outs, out_arguments = outputs(slices)
    launch(
        lowrank_add_kernel,
        (samples * triton.cdiv(tokens, tiles.block_m), len(slices.a)),
        tiles=tiles,
        flops=2 * samples * tokens * sum(slices.elements),
        steps=triton.cdiv(d, tiles.block_k),
        writes=("out_0_ptr", "out_1_ptr", "out_2_ptr"),
        addressed=slices.addressed(bases, slices.a, slices.b),
        **slices.pointers("base", bases), x_ptr=x, **slices.pointers("a", slices.a), **slices.pointers("b", slices.b),
        **out_arguments, table_ptr=slices.table(bases), **slices.arguments(), **slices.sets_arguments(), K=d,
        stride_xs=x.stride(0), stride_xm=x.stride(1), BLOCK_R=slices.block_r, **slices.alignment(),
        **product(x.dtype), EVEN=d % tiles.block_k == 0,
    )  # fmt: skip
    return outs
