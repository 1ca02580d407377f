"""What the matrix kernels share on the device: which tile a program has, and the product of a tile."""

from __future__ import annotations

import triton
import triton.language as tl

from hnkernels.triton._compat import convert, dot


@triton.jit
def tile_of(index, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Program index → (tile row, tile column), in groups of GROUP_M tile rows: neighbours share operands in L2."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    per_group = GROUP_M * tiles_n
    group = index // per_group
    first = group * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    return first + (index % per_group) % height, (index % per_group) // height


@triton.jit
def multiply(
    acc,  # [BLOCK_M, BLOCK_N]
    x_ptr,  # [M, K]
    w_ptr,  # [N, K] by its strides
    rows,  # [BLOCK_M] int64
    cols,  # [BLOCK_N]
    M,
    N,
    K,
    stride_xm,
    stride_wn,
    stride_wk,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,  # K is a multiple of BLOCK_K
    PRECISION: tl.constexpr,
    g_ptr=None,  # [K]: x is multiplied by it, or None
):
    """``acc + (x∘g) wᵀ`` for the tile of these rows and columns; what lies outside counts as 0."""
    depth = tl.arange(0, BLOCK_K)
    x_tile = x_ptr + rows[:, None] * stride_xm + depth[None, :]  # [BLOCK_M, BLOCK_K]
    w_tile = w_ptr + cols[None, :] * stride_wn + depth[:, None] * stride_wk  # [BLOCK_K, BLOCK_N]
    row_mask = (rows < M)[:, None]
    col_mask = (cols < N)[None, :]
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_tile, mask=row_mask, other=0.0)
            w = tl.load(w_tile, mask=col_mask, other=0.0)
        else:
            x = tl.load(x_tile, mask=row_mask & (depth < K - k)[None, :], other=0.0)
            w = tl.load(w_tile, mask=col_mask & (depth < K - k)[:, None], other=0.0)
        if g_ptr is not None:
            g = tl.load(g_ptr + k + depth, mask=depth < K - k, other=0.0)
            x = convert(x.to(acc.dtype) * g.to(acc.dtype)[None, :], x.dtype)
        acc = dot(x, w.to(x.dtype), acc, PRECISION)
        x_tile += BLOCK_K
        w_tile += BLOCK_K * stride_wk
    return acc
