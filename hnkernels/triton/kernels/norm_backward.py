"""LayerNorm's backward pass inside the products on either side of it; rows are never read as a whole.

With z = act(a), ẑ = (z − μ)·rstd and the layer above a' = W (ẑ∘γ + β) + b, whose gradient is da', the gradient of z is

    t = (da' W)∘γ      dz = rstd·(t − mean(t) − ẑ·mean(t∘ẑ))

Both means follow from what is known before the product, because W is linear:

    Σ t = da'·(W γ)      Σ t∘ẑ = da'·(W (γ∘ẑ)) = da'·(a' − (W β + b))

(a' is kept without that constant part, which would round the rest away.) So the kernel that makes da' adds up these
two numbers per row and tile, as the forward pass does with the moments, and the product's epilogue does the rest. What
γ and β themselves need follows from the weight gradient U = Σ da'ᵀ ẑ and db = Σ da', all as large as the weight:
dW = U∘γ + db βᵀ, dγ = Σ W∘U and dβ = Σ W db over the rows of W. γ is never divided by. (Own derivation, from Ba,
Kiros, Hinton 2016.)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton._compat import convert
from hnkernels.triton.autotune import choose
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.activations import activate, derivative
from hnkernels.triton.kernels.arguments import LayerGradient, Streams, acc_dtype, product
from hnkernels.triton.kernels.tiles import multiply, quarters, tile_of
from hnkernels.triton.launch import launch
from hnkernels.triton.target import target_of


@triton.jit
def row_dots(
    g,  # [R, C]: da' of these columns
    a,  # [R, C]: a' − (W β + b)
    wg_ptr,  # [N]: W γ
    cols,  # [C]
    N,
):
    """These columns' share of ``da'·(W γ)`` and of ``da'·(a' − (W β + b))``. Shape: two of [R]."""
    mask = cols < N
    wg = tl.load(wg_ptr + cols, mask=mask, other=0.0)[None, :]
    g = tl.where(mask[None, :], g, 0.0)
    return tl.sum(g * wg, axis=1), tl.sum(g * a, axis=1)


@triton.jit(do_not_specialize=["M", "tiles_in"])
def normed_gradient_kernel(
    da_k_ptr,  # [M, K]: da', gradient of the pre-activations of the layer above
    da_v_ptr,
    w_k_ptr,  # [K, N]: its weight
    w_v_ptr,
    g_k_ptr,  # [N]: γ
    g_v_ptr,
    a_ptr,  # [2, M, N]: the pre-activations of this layer, without wb
    stats_ptr,  # [2, M, 2]: μ and rstd
    dots_in_ptr,  # [2, tiles_in, M, 2]: the two numbers per row, in parts
    out_ptr,  # [2, M, N]: da
    normal_ptr,  # [2, M, N]: ẑ for the weight gradient, or None
    wb_ptr,  # [2, N]: W β + b of this layer's own product, if a LayerNorm is in front of it; else None
    wg_ptr,  # [2, N]: W γ likewise
    dots_out_ptr,  # [2, tiles of N, M, 2], with wg
    M,
    N,
    K,
    tiles_in,
    ACT: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``da = act'(a)∘dz`` with the formulas above, K and V in one launch."""
    wait_for_launches_before()
    stream = tl.program_id(1)
    da_ptr, w_ptr, g_ptr = da_k_ptr, w_k_ptr, g_k_ptr
    if stream == 1:
        da_ptr, w_ptr, g_ptr = da_v_ptr, w_v_ptr, g_v_ptr
    tile_m, tile_n = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < M
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    acc = multiply(acc, da_ptr, w_ptr, rows, cols, M, N, K, K, N, True, BLOCK_K, EVEN, PRECISION)

    in_mean = tl.zeros((BLOCK_M,), ACC)
    in_along = tl.zeros((BLOCK_M,), ACC)
    for tile in range(tiles_in):
        at = dots_in_ptr + ((stream * tiles_in + tile) * tl.cast(M, tl.int64) + rows) * 2
        in_mean += tl.load(at, mask=row_mask, other=0.0)
        in_along += tl.load(at + 1, mask=row_mask, other=0.0)
    stats = stats_ptr + (stream * tl.cast(M, tl.int64) + rows) * 2
    mean = tl.load(stats, mask=row_mask, other=0.0)
    rstd = tl.load(stats + 1, mask=row_mask, other=0.0)

    stream_at = stream * (tl.cast(M, tl.int64) * N)
    by_wg = tl.zeros((BLOCK_M,), ACC)
    by_a = tl.zeros((BLOCK_M,), ACC)
    first, second, third, fourth = quarters(acc, BLOCK_M, BLOCK_N)
    for part in tl.static_range(4):
        g = first
        if part == 1:
            g = second
        if part == 2:
            g = third
        if part == 3:
            g = fourth
        cols = tile_n * BLOCK_N + part * (BLOCK_N // 4) + tl.arange(0, BLOCK_N // 4)
        mask = row_mask[:, None] & (cols < N)[None, :]
        at = stream_at + rows[:, None] * N + cols[None, :]
        kept = tl.load(a_ptr + at, mask=mask, other=0.0).to(ACC)
        a = kept
        if wb_ptr is not None:
            a += tl.load(wb_ptr + stream * N + cols, mask=cols < N, other=0.0)[None, :]
        normal = (activate(a, 0.0, ACT) - mean[:, None]) * rstd[:, None]
        if normal_ptr is not None:
            tl.store(normal_ptr + at, convert(normal, normal_ptr.dtype.element_ty), mask=mask)
        g *= tl.load(g_ptr + cols, mask=cols < N, other=0.0).to(ACC)[None, :]
        g = rstd[:, None] * (g - (in_mean / N)[:, None] - normal * (in_along / N)[:, None]) * derivative(a, 0.0, ACT)
        tl.store(out_ptr + at, convert(g, out_ptr.dtype.element_ty), mask=mask)
        if wg_ptr is not None:
            part_by_wg, part_by_a = row_dots(g, kept, wg_ptr + stream * N, cols, N)
            by_wg += part_by_wg
            by_a += part_by_a
    if wg_ptr is not None:
        dots = dots_out_ptr + ((stream * tl.cdiv(N, BLOCK_N) + tile_n) * tl.cast(M, tl.int64) + rows) * 2
        tl.store(dots, by_wg, mask=row_mask)
        tl.store(dots + 1, by_a, mask=row_mask)


@triton.jit
def normed_tile(
    u,  # [BLOCK_N, BLOCK_K]: of U
    db,  # [BLOCK_N]
    w,  # [BLOCK_N, BLOCK_K]; 0 outside
    g_ptr,  # [K]: γ
    b_ptr,  # [K]: β
    vectors_ptr,  # [2, K]: what this tile adds to dγ and to dβ
    cols,  # [BLOCK_K]
    K,
):
    """A tile of ``dW = U∘γ + db βᵀ``; and its part of ``dγ = Σ W∘U`` and ``dβ = Σ W db``, which are stored."""
    inside = cols < K
    w = w.to(u.dtype)
    tl.store(vectors_ptr + cols, tl.sum(w * u, axis=0), mask=inside)
    tl.store(vectors_ptr + K + cols, tl.sum(w * db[:, None], axis=0), mask=inside)
    gamma = tl.load(g_ptr + cols, mask=inside, other=0.0).to(u.dtype)
    beta = tl.load(b_ptr + cols, mask=inside, other=0.0).to(u.dtype)
    return u * gamma[None, :] + db[:, None] * beta[None, :]


@triton.jit(do_not_specialize=["splits"])
def normed_weight_gradient_kernel(
    parts_ptr,  # [splits, elements] fp32: U and db, this layer's part begins here
    w_k_ptr,  # [N, K]
    w_v_ptr,
    g_k_ptr,  # [K]: γ
    g_v_ptr,
    b_k_ptr,  # [K]: β
    b_v_ptr,
    out_ptr,  # the flat gradient, from this layer on
    vectors_ptr,  # [tiles of N, streams, 2, K]: dγ and dβ in parts
    splits,
    elements,
    N,
    K,
    weight_v,  # elements from the K stream's dw to the V stream's
    bias_k,  # and to the db of both
    bias_v,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The gradients after a LayerNorm of what several splits of the tokens have: U and db are added up in order."""
    wait_for_launches_before()
    stream = tl.program_id(1)
    w_ptr, g_ptr, b_ptr, weight_at, bias_at = w_k_ptr, g_k_ptr, b_k_ptr, 0 * weight_v, bias_k
    if stream == 1:
        w_ptr, g_ptr, b_ptr, weight_at, bias_at = w_v_ptr, g_v_ptr, b_v_ptr, weight_v, bias_v
    tiles_k = tl.cdiv(K, BLOCK_K)
    tile_n, tile_k = tl.program_id(0) // tiles_k, tl.program_id(0) % tiles_k
    rows = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = (rows < N)[:, None] & (cols < K)[None, :]
    at = rows[:, None].to(tl.int64) * K + cols[None, :]
    w = tl.load(w_ptr + at, mask=mask, other=0.0)
    u = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    db = tl.zeros((BLOCK_N,), ACC)
    for split in range(splits):
        part = parts_ptr + split * tl.cast(elements, tl.int64)
        u += tl.load(part + weight_at + at, mask=mask, other=0.0)
        db += tl.load(part + bias_at + rows, mask=rows < N, other=0.0)
    dtype = out_ptr.dtype.element_ty
    if tile_k == 0:
        tl.store(out_ptr + bias_at + rows, convert(db, dtype), mask=rows < N)
    vectors = vectors_ptr + (tile_n * tl.num_programs(1) + stream).to(tl.int64) * 2 * K
    dw = normed_tile(u, db, w, g_ptr, b_ptr, vectors, cols, K)
    tl.store(out_ptr + weight_at + at, convert(dw, dtype), mask=mask)


def normed_gradient(
    da: Streams,
    w: Streams,
    gamma: Streams,
    act: str,
    a: Tensor,
    stats: Tensor,
    dots: Tensor,
    *,
    with_normal: bool,
    wb: Tensor | None = None,
    wg: Tensor | None = None,
) -> LayerGradient:
    """``normed_gradient_kernel``: da' [M, K], w [K, N] per stream, a [streams, M, N] → da and ẑ, like a, and the dots.

    ``stats`` [streams, M, 2] and ``dots`` [streams, tiles, M, 2] are of this layer's LayerNorm; ``wb``, ``wg`` and,
    with ``wg``, the dots that come back, of one in front of this layer's own product.
    """
    (M, K), N = da[0].shape, w[0].shape[1]
    dtype, device = da[0].dtype, da[0].device
    tiles = choose("backward", M, N, K, dtype, target_of(device))
    out = torch.empty(len(da), M, N, device=device, dtype=dtype)
    normal = torch.empty_like(out) if with_normal else None
    columns = triton.cdiv(N, tiles.block_n)
    dots_out = None
    if wg is not None:
        dots_out = torch.empty(len(da), columns, M, 2, device=device, dtype=acc_dtype(dtype))
    launch(
        normed_gradient_kernel,
        (triton.cdiv(M, tiles.block_m) * columns, len(da)),
        tiles=tiles,
        flops=2 * len(da) * M * N * K,
        steps=triton.cdiv(K, tiles.block_k),
        writes=("out_ptr", "normal_ptr", "dots_out_ptr"),
        da_k_ptr=da[0], da_v_ptr=da[-1], w_k_ptr=w[0], w_v_ptr=w[-1], g_k_ptr=gamma[0], g_v_ptr=gamma[-1], a_ptr=a,
        stats_ptr=stats, dots_in_ptr=dots, out_ptr=out, normal_ptr=normal,
        wb_ptr=wb, wg_ptr=wg, dots_out_ptr=dots_out,
        M=M, N=N, K=K, tiles_in=dots.shape[1], ACT=act, **product(dtype),
        EVEN=K % tiles.block_k == N % tiles.block_n == 0,
    )  # fmt: skip
    return LayerGradient(out, normal, dots_out)
