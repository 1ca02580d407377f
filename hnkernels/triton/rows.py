"""Kernels that need whole rows: the LayerNorm that no product follows, and the backward pass of activation and norm.

A program holds some whole rows at a time; K and V are the two halves of the grid. γ may be 0 or negative, and is never
divided by.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hnkernels.triton._compat import convert
from hnkernels.triton.activations import activate, derivative
from hnkernels.triton.dropout import dropout_scale
from hnkernels.triton.norm_backward import row_dots


@triton.jit
def normalise(z, inside, N, eps):
    """``z − μ``, 0 outside, and 1/σ of every row. Shape: z [R, C], inside [1, C] → [R, C] and [R]."""
    mean = tl.sum(tl.where(inside, z, 0.0), axis=1) / N
    delta = tl.where(inside, z - mean[:, None], 0.0)
    return delta, tl.rsqrt(tl.sum(delta * delta, axis=1) / N + eps)


@triton.jit(do_not_specialize=["site", "M"])
def norm_forward_kernel(
    a_ptr,  # [2, M, N]: the pre-activations, without wb
    wb_ptr,  # [2, N]: W β + b of a LayerNorm in front, or None
    g_k_ptr,  # [N]: γ
    g_v_ptr,
    b_k_ptr,  # [N]: β
    b_v_ptr,
    alpha_k_ptr,  # [1]: prelu's slope
    alpha_v_ptr,
    residual_k_ptr,  # [M, N], with RESIDUAL
    residual_v_ptr,
    out_k_ptr,  # [M, N]
    out_v_ptr,
    seed_ptr,
    site,
    dropout,
    multiplier_k,
    multiplier_v,
    strength_ptr,  # [2] fp32: another factor on the multipliers, or None
    eps,
    M,
    N,
    stride_rk,
    stride_rv,
    ACT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRELU: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``out = [residual + m·] dropout(LN(act(a)))``, BLOCK_R rows a program."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    stream = tl.program_id(1)
    g_ptr, b_ptr, out_ptr = g_k_ptr, b_k_ptr, out_k_ptr
    if stream == 1:
        g_ptr, b_ptr, out_ptr = g_v_ptr, b_v_ptr, out_v_ptr
    cols = tl.arange(0, BLOCK_N)
    inside = (cols < N)[None, :]
    mask = (rows < M)[:, None] & inside  # [BLOCK_R, BLOCK_N]
    alpha = 0.0
    if PRELU:
        alpha_ptr = alpha_k_ptr
        if stream == 1:
            alpha_ptr = alpha_v_ptr
        alpha = tl.load(alpha_ptr).to(ACC)
    at = rows[:, None] * N + cols[None, :]
    a = tl.load(a_ptr + stream * (tl.cast(M, tl.int64) * N) + at, mask=mask, other=0.0).to(ACC)
    if wb_ptr is not None:
        a += tl.load(wb_ptr + stream * N + cols, mask=cols < N, other=0.0)[None, :]
    delta, rstd = normalise(activate(a, alpha, ACT), inside, N, eps)
    g = tl.load(g_ptr + cols, mask=cols < N, other=0.0).to(ACC)
    b = tl.load(b_ptr + cols, mask=cols < N, other=0.0).to(ACC)
    y = delta * rstd[:, None] * g[None, :] + b[None, :]
    if DROPOUT:
        y *= dropout_scale(seed_ptr, dropout, rows, cols, site + stream)
    if RESIDUAL:
        residual_ptr, stride_rm, m = residual_k_ptr, stride_rk, multiplier_k
        if stream == 1:
            residual_ptr, stride_rm, m = residual_v_ptr, stride_rv, multiplier_v
        if strength_ptr is not None:
            m *= tl.load(strength_ptr + stream)
        residual = tl.load(residual_ptr + rows[:, None] * stride_rm + cols[None, :], mask=mask, other=0.0)
        y = residual.to(ACC) + m * y
    tl.store(out_ptr + at, convert(y, out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["site", "M", "row_of_sums", "stream_of_sums"])
def layer_output_backward_kernel(
    dh_k_ptr,  # [M, N]: gradient of the layer's output
    dh_v_ptr,
    a_ptr,  # [2, M, N]: the pre-activations, without wb; None without activation and norm
    g_k_ptr,  # [N]: γ, with NORM
    g_v_ptr,
    b_k_ptr,  # [N]: β, with NORM and h
    b_v_ptr,
    alpha_k_ptr,  # [1]: prelu's slope
    alpha_v_ptr,
    da_ptr,  # [2, M, N]: gradient of the pre-activations
    h_ptr,  # [2, M, N]: the layer's output once more, or None
    sums_ptr,  # [programs, row_of_sums] fp32, or None; this layer's part begins here
    wb_ptr,  # [2, N]: W β + b of a LayerNorm in front, or None
    wg_ptr,  # [2, N]: W γ likewise, where its backward pass wants dots of da, see norm_backward.py
    dots_ptr,  # [2, 1, M, 2], with wg
    seed_ptr,
    site,
    dropout,
    multiplier_k,
    multiplier_v,
    eps,
    M,
    N,
    stride_dk,
    stride_dv,
    row_of_sums,  # elements from one program's sums to the next one's
    stream_of_sums,  # elements from the K stream's sums to the V stream's
    ACT: tl.constexpr,
    NORM: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRELU: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The gradient through dropout, LayerNorm and activation; also Σ dγ, Σ dβ and prelu's slope per program.

    With z = act(a), ẑ = (z − μ)·rstd and g = m·dh∘mask (Ba, Kiros, Hinton 2016, differentiated):

        dβ = Σ g      dγ = Σ g∘ẑ      t = g∘γ      dz = rstd·(t − mean(t) − ẑ·mean(t∘ẑ))      da = dz∘act'(a)
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    stream = tl.program_id(1)
    dh_ptr, stride_dm, m = dh_k_ptr, stride_dk, multiplier_k
    if stream == 1:
        dh_ptr, stride_dm, m = dh_v_ptr, stride_dv, multiplier_v
    cols = tl.arange(0, BLOCK_N)
    inside = (cols < N)[None, :]
    alpha = 0.0
    if PRELU:
        alpha_ptr = alpha_k_ptr
        if stream == 1:
            alpha_ptr = alpha_v_ptr
        alpha = tl.load(alpha_ptr).to(ACC)
        d_alpha = tl.zeros((BLOCK_R, BLOCK_N), ACC)
    if NORM:
        g_ptr, b_ptr = g_k_ptr, b_k_ptr
        if stream == 1:
            g_ptr, b_ptr = g_v_ptr, b_v_ptr
        gamma = tl.load(g_ptr + cols, mask=cols < N, other=0.0).to(ACC)[None, :]
        if h_ptr is not None:
            beta = tl.load(b_ptr + cols, mask=cols < N, other=0.0).to(ACC)[None, :]
        d_gamma = tl.zeros((BLOCK_R, BLOCK_N), ACC)
        d_beta = tl.zeros((BLOCK_R, BLOCK_N), ACC)
    for start in range(program * BLOCK_R, M, programs * BLOCK_R):
        rows = tl.cast(start, tl.int64) + tl.arange(0, BLOCK_R)
        mask = (rows < M)[:, None] & inside  # [BLOCK_R, BLOCK_N]
        at = stream * (tl.cast(M, tl.int64) * N) + rows[:, None] * N + cols[None, :]
        g = m * tl.load(dh_ptr + rows[:, None] * stride_dm + cols[None, :], mask=mask, other=0.0).to(ACC)
        if DROPOUT:
            scale = dropout_scale(seed_ptr, dropout, rows, cols, site + stream)
            g *= scale
        if a_ptr is not None:
            kept = tl.load(a_ptr + at, mask=mask, other=0.0).to(ACC)
            a = kept
            if wb_ptr is not None:
                a += tl.load(wb_ptr + stream * N + cols, mask=cols < N, other=0.0)[None, :]
        if NORM:
            delta, rstd = normalise(activate(a, alpha, ACT), inside, N, eps)
            normal = delta * rstd[:, None]
            if h_ptr is not None:
                h = normal * gamma + beta
                if DROPOUT:
                    h *= scale
                tl.store(h_ptr + at, convert(h, h_ptr.dtype.element_ty), mask=mask)
            d_beta += g
            d_gamma += g * normal
            g *= gamma
            mean = tl.sum(g, axis=1) / N
            along = tl.sum(g * normal, axis=1) / N
            g = rstd[:, None] * (g - mean[:, None] - normal * along[:, None])
        elif h_ptr is not None:
            h = activate(a, alpha, ACT)
            if DROPOUT:
                h *= scale
            tl.store(h_ptr + at, convert(h, h_ptr.dtype.element_ty), mask=mask)
        if PRELU:
            d_alpha += tl.where(mask, g * tl.minimum(a, 0.0), 0.0)
        if ACT != "linear":
            g *= derivative(a, alpha, ACT)
        tl.store(da_ptr + at, convert(g, da_ptr.dtype.element_ty), mask=mask)
        if wg_ptr is not None:
            by_wg, by_a = row_dots(g, kept, wg_ptr + stream * N, cols, N)
            dots = dots_ptr + (stream * tl.cast(M, tl.int64) + rows) * 2
            tl.store(dots, by_wg, mask=rows < M)
            tl.store(dots + 1, by_a, mask=rows < M)
    if sums_ptr is not None:
        sums = sums_ptr + program.to(tl.int64) * row_of_sums + stream * stream_of_sums
        if NORM:
            tl.store(sums + cols, tl.sum(d_gamma, axis=0), mask=cols < N)
            tl.store(sums + N + cols, tl.sum(d_beta, axis=0), mask=cols < N)
            sums += 2 * N
        if PRELU:
            tl.store(sums, tl.sum(d_alpha))


@triton.jit
def norm_vectors_kernel(
    w_k_ptr,  # [N, K]
    w_v_ptr,
    bias_k_ptr,  # [N]
    bias_v_ptr,
    g_k_ptr,  # [K]: γ of the LayerNorm in front
    g_v_ptr,
    b_k_ptr,  # [K]: β
    b_v_ptr,
    wg_ptr,  # [2, N] fp32: W γ
    wb_ptr,  # [2, N] fp32: W β + bias
    N,
    K,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The two vectors that a LayerNorm folds into the linear behind it."""
    stream = tl.program_id(1)
    w_ptr, bias_ptr, g_ptr, b_ptr = w_k_ptr, bias_k_ptr, g_k_ptr, b_k_ptr
    if stream == 1:
        w_ptr, bias_ptr, g_ptr, b_ptr = w_v_ptr, bias_v_ptr, g_v_ptr, b_v_ptr
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    by_gamma = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    by_beta = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    for k in range(0, K, BLOCK_K):
        inside = depth < K - k
        mask = (rows < N)[:, None] & inside[None, :]
        w = tl.load(w_ptr + rows[:, None].to(tl.int64) * K + (k + depth)[None, :], mask=mask, other=0.0).to(ACC)
        by_gamma += w * tl.load(g_ptr + k + depth, mask=inside, other=0.0).to(ACC)[None, :]
        by_beta += w * tl.load(b_ptr + k + depth, mask=inside, other=0.0).to(ACC)[None, :]
    bias = tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(ACC)
    tl.store(wg_ptr + stream * N + rows, tl.sum(by_gamma, axis=1), mask=rows < N)
    tl.store(wb_ptr + stream * N + rows, tl.sum(by_beta, axis=1) + bias, mask=rows < N)
