"""The gradient of a low-rank linear's input; see ``lowrank_slices``."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton._compat import convert, dot
from hnkernels.triton.autotune import choose
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.arguments import product
from hnkernels.triton.kernels.lowrank_arguments import LowRank
from hnkernels.triton.kernels.lowrank_slices import (
    AT_A,
    AT_SLICE,
    AT_W,
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


@triton.jit(do_not_specialize=["T", "slices", "samples", "samples_per_set", "r_0", "r_1", "r_2", "stride_scale"])
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
    g_ptr,  # dy_p b_p [S, T, r_p], the slices one after another
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
    samples_per_set,
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
    wait_for_launches_before()
    dtype = dx_ptr.dtype.element_ty
    per_sample = tl.cdiv(T, BLOCK_M) * tl.cdiv(D, BLOCK_N)
    sample = tl.program_id(0) // per_sample
    tile_m, tile_n = tile_of(tl.program_id(0) % per_sample, T, D, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ranks = tl.arange(0, BLOCK_R)
    row_mask, col_mask = (rows < T)[:, None], (cols < D)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    set_index = set_of(sample, index_ptr, samples_per_set)
    for slice_index in range(slices):
        r = rank_of(slice_index, table_ptr, r_0, r_1, r_2, MULTIPLE)
        scale = scale_of(slice_index, sample, scale_ptr, stride_scale)
        if scale * r != 0:  # without a scale too: where there is no branch LLVM unrolls the loop for AMD
            a_ptr = tensor_of(slice_index, table_ptr, AT_A, dx_ptr, a_0_ptr, a_1_ptr, a_2_ptr)
            start = ranks_before(slice_index, table_ptr, r_0, r_1, MULTIPLE) * samples * T
            at = g_ptr + start + (sample.to(tl.int64) * T + rows[:, None]) * r + ranks[None, :]
            g = tl.load(at, mask=row_mask & (ranks < r)[None, :], other=0.0)  # [BLOCK_M, BLOCK_R]
            at = a_ptr + set_index * (r * D) + ranks[:, None] * D + cols[None, :]
            a = tl.load(at, mask=(ranks < r)[:, None] & col_mask, other=0.0)  # [BLOCK_R, BLOCK_N]
            acc = dot(convert(g.to(ACC) * scale, dtype), a, acc, PRECISION)
    if BASE:
        for slice_index in range(slices):
            dy_ptr = tensor_of(slice_index, table_ptr, AT_SLICE, dx_ptr, dy_0_ptr, dy_1_ptr, dy_2_ptr)
            w_ptr = tensor_of(slice_index, table_ptr, AT_W, dx_ptr, w_0_ptr, w_1_ptr, w_2_ptr)
            N = width_of(slice_index, table_ptr, N_0, N_1, N_2, ALIGNED)
            dy_ptr += sample.to(tl.int64) * T * N
            acc = multiply(acc, dy_ptr, w_ptr, rows, cols, T, D, N, N, D, True, BLOCK_K, EVEN, PRECISION)
    at = dx_ptr + (sample.to(tl.int64) * T + rows[:, None]) * D + cols[None, :]
    tl.store(at, convert(acc, dtype), mask=row_mask & col_mask)


def lowrank_input_gradient(
    slices: LowRank, table: Tensor | None, dy: Sequence[Tensor], w: Sequence[Tensor], g: Tensor
) -> Tensor:
    """``lowrank_input_gradient_kernel``: dy [S, T, n_p], w [n_p, d] or none at all, g flat → dx [S, T, d]."""
    x = slices.x
    samples, tokens, d = x.shape
    target = target_of(x.device)
    kind = "lowrank input gradient with base" if w else "lowrank input gradient"
    tiles = choose(kind, slices.rows, d, max(slices.widths), x.dtype, target, slices.block_r)
    dx = x.new_empty(samples, tokens, d)
    launch(
        lowrank_input_gradient_kernel,
        (samples * triton.cdiv(tokens, tiles.block_m) * triton.cdiv(d, tiles.block_n),),
        tiles=tiles,
        flops=2 * samples * tokens * (sum(t.numel() for t in w) + d * sum(slices.ranks)),
        steps=len(slices.a) + sum(triton.cdiv(t.shape[0], tiles.block_k) for t in w),
        writes=("dx_ptr",),
        addressed=slices.addressed(dy if w else (), w, slices.a),
        **slices.pointers("dy", dy if w else [None]), **slices.pointers("w", w or [None]),
        **slices.pointers("a", slices.a), g_ptr=g, dx_ptr=dx, table_ptr=table, **slices.arguments(),
        **slices.sets_arguments(), D=d, slices=len(slices.a), BASE=len(w) > 0, BLOCK_R=slices.block_r,
        **slices.alignment(), **product(x.dtype),
        EVEN=d % tiles.block_n == 0 and all(n % tiles.block_k == 0 for n in slices.widths),
    )  # fmt: skip
    return dx
