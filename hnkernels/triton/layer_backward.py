"""The gradients that flow down through one layer, K and V in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from hnkernels.triton._compat import convert
from hnkernels.triton.activations import activate, derivative
from hnkernels.triton.dropout import dropout_scale
from hnkernels.triton.tiles import halves, multiply, tile_of


@triton.jit(do_not_specialize=["site", "M"])
def hidden_gradient_kernel(
    da_k_ptr,  # [M, K]: gradient of the pre-activations of the layer above
    da_v_ptr,
    w_k_ptr,  # [K, N]: its weight
    w_v_ptr,
    a_ptr,  # [2, M, N]: the pre-activations of this layer, without wb; None without FUSED or an activation
    wb_ptr,  # [2, N]: W β + b of a LayerNorm in front of this layer, or None
    out_ptr,  # [2, M, N]
    h_ptr,  # [2, M, N]: this layer's output once more, or None
    seed_ptr,
    site,
    dropout,
    scale_k,
    scale_v,
    M,
    N,
    K,
    stride_dk,
    stride_dv,
    ACT: tl.constexpr,
    FUSED: tl.constexpr,
    DROPOUT: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``dh = scale · da w``; with FUSED ``dh ∘ mask ∘ act'(a)`` and, for the weight gradient, ``act(a) ∘ mask``.

    Without FUSED a LayerNorm or prelu's slope comes between, and a row kernel goes on from dh.
    """
    stream = tl.program_id(1)
    da_ptr, w_ptr, stride_dm, scale = da_k_ptr, w_k_ptr, stride_dk, scale_k
    if stream == 1:
        da_ptr, w_ptr, stride_dm, scale = da_v_ptr, w_v_ptr, stride_dv, scale_v
    tile_m, tile_n = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    acc = multiply(acc, da_ptr, w_ptr, rows, cols, M, N, K, stride_dm, N, True, BLOCK_K, EVEN, PRECISION)
    at = stream * (tl.cast(M, tl.int64) * N)
    wb_at = None
    if wb_ptr is not None:
        wb_at = wb_ptr + stream * N
    left, right = halves(scale * acc, BLOCK_M, BLOCK_N)
    for half in tl.static_range(2):
        g = left if half == 0 else right
        cols = tile_n * BLOCK_N + half * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        _store_gradient(
            g, a_ptr, wb_at, out_ptr, h_ptr, at, seed_ptr, dropout, site + stream, rows, cols, M, N, ACT, FUSED, DROPOUT
        )


@triton.jit
def _store_gradient(
    g,  # [ROWS, COLS]: scale · da w
    a_ptr,
    wb_ptr,  # this stream's [N], or None
    out_ptr,
    h_ptr,
    start,  # elements to where the stream begins in a, out and h
    seed_ptr,
    dropout,
    site,
    rows,  # [ROWS] int64
    cols,  # [COLS]
    M,
    N,
    ACT: tl.constexpr,
    FUSED: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """The epilogue of ``hidden_gradient_kernel`` for one part of its tile."""
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    at = start + rows[:, None] * N + cols[None, :]
    if FUSED:
        if DROPOUT:
            kept = dropout_scale(seed_ptr, dropout, rows, cols, site)
            g *= kept
        if a_ptr is not None:
            a = tl.load(a_ptr + at, mask=mask, other=0.0).to(g.dtype)
            if wb_ptr is not None:
                a += tl.load(wb_ptr + cols, mask=cols < N, other=0.0)[None, :]
            g *= derivative(a, 0.0, ACT)
            if h_ptr is not None:
                h = activate(a, 0.0, ACT)
                if DROPOUT:
                    h *= kept
                tl.store(h_ptr + at, convert(h, h_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptr + at, convert(g, out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def input_gradient_kernel(
    dy_k_ptr,  # [M, D]
    dy_v_ptr,
    da_k_ptr,  # [M, K]
    da_v_ptr,
    w_k_ptr,  # [K, D]
    w_v_ptr,
    dq_ptr,  # [M, Q], or None
    w_q_ptr,  # [Q, D]
    dx_k_ptr,  # [M, D]
    dx_v_ptr,
    M,
    D,
    K,
    Q,
    SHARED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``dx_s = dy_s + da_s w_s``; with SHARED, where K and V rewrite one context, their sum ``[+ dq w_q]`` in dx_k."""
    tile_m, tile_n = tile_of(tl.program_id(0), M, D, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (rows < M)[:, None] & (cols < D)[None, :]
    at = rows[:, None] * D + cols[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    if SHARED:
        dx_ptr = dx_k_ptr
        acc = multiply(acc, da_k_ptr, w_k_ptr, rows, cols, M, D, K, K, D, True, BLOCK_K, EVEN, PRECISION)
        acc = multiply(acc, da_v_ptr, w_v_ptr, rows, cols, M, D, K, K, D, True, BLOCK_K, EVEN, PRECISION)
        if dq_ptr is not None:
            acc = multiply(acc, dq_ptr, w_q_ptr, rows, cols, M, D, Q, Q, D, True, BLOCK_K, EVEN, PRECISION)
        acc += tl.load(dy_k_ptr + at, mask=mask, other=0.0).to(ACC)
        acc += tl.load(dy_v_ptr + at, mask=mask, other=0.0).to(ACC)
    else:
        dy_ptr, da_ptr, w_ptr, dx_ptr = dy_k_ptr, da_k_ptr, w_k_ptr, dx_k_ptr
        if tl.program_id(1) == 1:
            dy_ptr, da_ptr, w_ptr, dx_ptr = dy_v_ptr, da_v_ptr, w_v_ptr, dx_v_ptr
        acc = multiply(acc, da_ptr, w_ptr, rows, cols, M, D, K, K, D, True, BLOCK_K, EVEN, PRECISION)
        acc += tl.load(dy_ptr + at, mask=mask, other=0.0).to(ACC)
    tl.store(dx_ptr + at, convert(acc, dx_ptr.dtype.element_ty), mask=mask)
