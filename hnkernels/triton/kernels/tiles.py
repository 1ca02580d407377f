"""What the matrix kernels share on the device: which tile a program has, and the product of a tile."""

from __future__ import annotations

import triton
import triton.language as tl

from hnkernels.triton._compat import convert, dot
from hnkernels.triton.compiling import xcds


@triton.jit
def on_one_xcd(index, programs, XCDS: tl.constexpr):
    """Renumbers programs, which a device deals out to its XCDs in turn, so that those of one XCD are neighbours: they
    share operands in an L2 cache of their own.

    The index is that along axis 0 of a grid, or in a part of it, wherever it begins: programs whose indices leave the
    same remainder are on the same XCD, and it makes no difference on which.
    """
    xcd = index % XCDS
    return xcd * (programs // XCDS) + tl.minimum(xcd, programs % XCDS) + index // XCDS


@triton.jit
def tile_of(index, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Program index → (tile row, tile column), in groups of GROUP_M tile rows: neighbours share operands in L2."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    XCDS: tl.constexpr = xcds()
    if XCDS > 1:
        index = on_one_xcd(index, tiles_m * tiles_n, XCDS)
    per_group = GROUP_M * tiles_n
    group = index // per_group
    first = group * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    return first + (index % per_group) % height, (index % per_group) // height


@triton.jit
def multiply(
    acc,  # [BLOCK_M, BLOCK_N]
    x_ptr,  # [M, K]
    w_ptr,  # [N, K], or [K, N] with TRANSPOSED
    rows,  # [BLOCK_M] int64
    cols,  # [BLOCK_N]
    M,
    N,
    K,
    stride_xm,
    stride_w,
    TRANSPOSED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,  # K is a multiple of BLOCK_K; with TRANSPOSED N is one of BLOCK_N too
    PRECISION: tl.constexpr,
    g_ptr=None,  # [K]: x is multiplied by it, or None
    first=0,  # the part of K that is added up, from a multiple of BLOCK_K on
    last=None,  # to here, or to K
):
    """``acc + (x∘g) wᵀ``, or ``acc + (x∘g) w`` with TRANSPOSED, for the tile of these rows and columns.

    What lies outside counts as 0 along K. Rows and columns outside read others instead where that leaves wide loads
    in line: their results are never stored, and loads without a mask need no branch on AMD.
    """
    if last is None:
        last = K
    depth = tl.arange(0, BLOCK_K)
    x_ptr += first
    if TRANSPOSED:
        w_ptr += first * tl.cast(stride_w, tl.int64)
    else:
        w_ptr += first
    inside = tl.where(rows < M, rows, 0)
    x_tile = x_ptr + inside[:, None] * stride_xm + depth[None, :]  # [BLOCK_M, BLOCK_K]
    if TRANSPOSED:
        w_tile = w_ptr + depth[:, None] * stride_w + cols[None, :]  # [BLOCK_K, BLOCK_N]
        step = BLOCK_K * stride_w
    else:
        w_tile = w_ptr + depth[:, None] + tl.where(cols < N, cols, 0)[None, :] * stride_w
        step = BLOCK_K
    for k in range(first, last, BLOCK_K):
        if EVEN:
            x = tl.load(x_tile)
            w = tl.load(w_tile)
        else:
            x = tl.load(x_tile, mask=(depth < K - k)[None, :], other=0.0)
            w = tl.load(w_tile, mask=(depth < K - k)[:, None] & (cols < N)[None, :], other=0.0)
        if g_ptr is not None:
            if EVEN:
                g = tl.load(g_ptr + k + depth)
            else:
                g = tl.load(g_ptr + k + depth, mask=depth < K - k, other=0.0)
            x = convert(x.to(acc.dtype) * g.to(acc.dtype)[None, :], x.dtype)
        acc = dot(x, w.to(x.dtype), acc, PRECISION)
        x_tile += BLOCK_K
        w_tile += step
    return acc


@triton.jit
def part_of(split, steps, before, K, BLOCK_K: tl.constexpr):
    """Which part of K falls to a split of ``steps`` steps, where products of ``before`` steps come first; perhaps none.

    Shape: two numbers, for ``multiply``.
    """
    first = tl.minimum(tl.maximum(split * steps - before, 0) * BLOCK_K, K)
    return first, tl.minimum(tl.maximum((split + 1) * steps - before, 0) * BLOCK_K, K)


@triton.jit
def halves(x, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The left and the right half of a tile. Shape: [BLOCK_M, BLOCK_N] → two of [BLOCK_M, BLOCK_N / 2].

    An epilogue that needs many values per element goes through them one after the other, so as not to run out of
    registers; where it needs very many, through quarters.
    """
    return tl.split(tl.permute(tl.reshape(x, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))


@triton.jit
def quarters(x, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The four quarters of a tile from left to right, [BLOCK_M, BLOCK_N / 4] each."""
    left, right = halves(x, BLOCK_M, BLOCK_N)
    first, second = halves(left, BLOCK_M, BLOCK_N // 2)
    third, fourth = halves(right, BLOCK_M, BLOCK_N // 2)
    return first, second, third, fourth
