"""Weight and bias gradients: a long sum over tokens, split into parts that are added in a fixed order. No atomics."""

from __future__ import annotations

import triton
import triton.language as tl

from hnkernels.triton._compat import convert, dot
from hnkernels.triton.activations import activate
from hnkernels.triton.tiles import tile_of


@triton.jit(do_not_specialize=["M"])
def weight_gradient_kernel(
    da_k_ptr,  # [M, N]
    da_v_ptr,
    h_k_ptr,  # [M, K]; with stats the pre-activations of a layer with LayerNorm, which ẑ is made of
    h_v_ptr,
    stats_ptr,  # [2, M, 2]: μ and 1/σ of its rows, or None
    out_ptr,  # [splits, elements]: this layer's part begins here
    M,
    N_k,
    N_v,
    K,
    rows_per_split,
    elements,
    weight_v,  # elements from here to where the V stream's dw goes; the K stream's is first
    bias_k,  # and to the db of both; with BIAS
    bias_v,
    scale_k,
    scale_v,
    stride_dk,
    stride_dv,
    stride_hk,
    stride_hv,
    ACT: tl.constexpr,
    BIAS: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,  # M, N and K are multiples of their blocks
    BLOCK_M: tl.constexpr,  # tokens of a step
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``dw = scale · daᵀ h`` [N, K] and ``db = scale · Σ da`` [N] over the tokens of one split.

    db is one more product, daᵀ with ones, because adding up rows in the loop costs more than a small dot.
    """
    stream = tl.program_id(1)
    split = tl.program_id(2)
    da_ptr, h_ptr, N, stride_dm, stride_hm, scale = da_k_ptr, h_k_ptr, N_k, stride_dk, stride_hk, scale_k
    weight_at, bias_at = 0 * weight_v, bias_k
    if stream == 1:
        da_ptr, h_ptr, N, stride_dm, stride_hm, scale = da_v_ptr, h_v_ptr, N_v, stride_dv, stride_hv, scale_v
        weight_at, bias_at = weight_v, bias_v
    if tl.program_id(0) >= tl.cdiv(N, BLOCK_N) * tl.cdiv(K, BLOCK_K):
        return
    tile_n, tile_k = tile_of(tl.program_id(0), N, K, BLOCK_N, BLOCK_K, GROUP_M)
    cols_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    cols_k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    first = split.to(tl.int64) * rows_per_split
    count = tl.minimum(M - first, rows_per_split).to(tl.int32)
    steps = tl.arange(0, BLOCK_M)
    rows = first + steps
    da_tile = da_ptr + rows[None, :] * stride_dm + cols_n[:, None]  # [BLOCK_N, BLOCK_M]
    h_tile = h_ptr + rows[:, None] * stride_hm + cols_k[None, :]  # [BLOCK_M, BLOCK_K]
    n_mask = (cols_n < N)[:, None]
    k_mask = (cols_k < K)[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    if BIAS:
        ones = tl.full((BLOCK_M, 16), 1.0, da_ptr.dtype.element_ty)
        sums = tl.zeros((BLOCK_N, 16), ACC)
    for step in range(0, count, BLOCK_M):
        if EVEN:
            da = tl.load(da_tile)
            h = tl.load(h_tile)
        else:
            inside = steps < count - step
            da = tl.load(da_tile, mask=n_mask & inside[None, :], other=0.0)
            h = tl.load(h_tile, mask=k_mask & inside[:, None], other=0.0)
        if stats_ptr is not None:
            inside = steps < count - step
            stats = stats_ptr + (stream * tl.cast(M, tl.int64) + first + step + steps) * 2
            mean = tl.load(stats, mask=inside, other=0.0)
            rstd = tl.load(stats + 1, mask=inside, other=0.0)
            normal = (activate(h.to(ACC), 0.0, ACT) - mean[:, None]) * rstd[:, None]
            h = convert(normal, da.dtype)
        acc = dot(da, h.to(da.dtype), acc, PRECISION)
        if BIAS:
            sums = dot(da, ones, sums, PRECISION)
        da_tile += BLOCK_M * tl.cast(stride_dm, tl.int64)
        h_tile += BLOCK_M * tl.cast(stride_hm, tl.int64)
    out = out_ptr + split.to(tl.int64) * elements
    dtype = out_ptr.dtype.element_ty
    at = out + weight_at + cols_n[:, None].to(tl.int64) * K + cols_k[None, :]
    tl.store(at, convert(scale * acc, dtype), mask=n_mask & k_mask)
    if BIAS:
        if tile_k == 0:
            db = tl.sum(sums, axis=1) * (1.0 / 16)  # 16 equal columns: exact
            tl.store(out + bias_at + cols_n, convert(scale * db, dtype), mask=cols_n < N)


@triton.jit(do_not_specialize=["R"])
def sum_rows_kernel(
    parts_ptr,  # [R, P] fp32, rows ``stride`` apart
    out_ptr,  # [P]
    R,
    P,
    stride,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """``out = Σ parts`` over the rows, in a fixed order."""
    cols = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    steps = tl.arange(0, BLOCK_R)
    acc = tl.zeros((BLOCK_P,), ACC)
    for r in range(0, R, BLOCK_R):
        mask = (steps < R - r)[:, None] & (cols < P)[None, :]
        acc += tl.sum(
            tl.load(parts_ptr + (r + steps)[:, None].to(tl.int64) * stride + cols[None, :], mask=mask, other=0.0), 0
        )
    tl.store(out_ptr + cols, convert(acc, out_ptr.dtype.element_ty), mask=cols < P)
