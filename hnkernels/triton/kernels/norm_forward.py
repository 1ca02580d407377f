"""LayerNorm forward: over whole rows where no product follows, and the two vectors that a product finishes it with.

γ may be 0 or negative, and is never divided by.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton._compat import convert
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.activations import activate
from hnkernels.triton.kernels.arguments import EPS, Dropout, Streams, acc_dtype, tl_dtype
from hnkernels.triton.kernels.dropout import dropout_scale
from hnkernels.triton.launch import launch
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import row_tiles


@triton.jit
def normalise(z, inside, N, eps):
    """``z − μ``, 0 outside, and 1/σ of every row. Shape: z [R, C], inside [1, C] → [R, C] and [R]."""
    mean = tl.sum(tl.where(inside, z, 0.0), axis=1) / N
    delta = tl.where(inside, z - mean[:, None], 0.0)
    return delta, tl.rsqrt(tl.sum(delta * delta, axis=1) / N + eps)


@triton.jit(do_not_specialize=["layer_id", "M"])
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
    layer_id,
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
    wait_for_launches_before()
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
        y *= dropout_scale(seed_ptr, dropout, rows, cols, layer_id + stream)
    if RESIDUAL:
        residual_ptr, stride_rm, m = residual_k_ptr, stride_rk, multiplier_k
        if stream == 1:
            residual_ptr, stride_rm, m = residual_v_ptr, stride_rv, multiplier_v
        if strength_ptr is not None:
            m *= tl.load(strength_ptr + stream)
        residual = tl.load(residual_ptr + rows[:, None] * stride_rm + cols[None, :], mask=mask, other=0.0)
        y = residual.to(ACC) + m * y
    tl.store(out_ptr + at, convert(y, out_ptr.dtype.element_ty), mask=mask)


def norm_forward(
    a: Tensor,
    gamma: Streams,
    beta: Streams,
    act: str,
    *,
    out_dtype: torch.dtype,
    alpha: Streams | None = None,
    dropout: Dropout | None = None,
    residual: Streams | None = None,
    multiplier: tuple[float, ...] = (1.0, 1.0),
    strength: Tensor | None = None,
    wb: Tensor | None = None,
) -> Streams:
    """``[residual + m·] dropout(LN(act(a + wb)))``. Shape: a [streams, M, N], wb [streams, N] → [M, N] per stream."""
    streams, M, N = a.shape
    outs = tuple(torch.empty(M, N, device=a.device, dtype=out_dtype) for _ in range(streams))
    block = row_tiles("whole rows", M, N, target_of(a.device))
    launch(
        norm_forward_kernel,
        (triton.cdiv(M, block.rows), streams),
        steps=1,
        writes=("out_k_ptr", "out_v_ptr"),
        a_ptr=a, wb_ptr=wb, g_k_ptr=gamma[0], g_v_ptr=gamma[-1], b_k_ptr=beta[0], b_v_ptr=beta[-1],
        alpha_k_ptr=alpha[0] if alpha else None, alpha_v_ptr=alpha[-1] if alpha else None,
        residual_k_ptr=residual[0] if residual else None, residual_v_ptr=residual[-1] if residual else None,
        out_k_ptr=outs[0], out_v_ptr=outs[-1],
        seed_ptr=dropout.seed if dropout else None, layer_id=dropout.layer_id if dropout else 0,
        dropout=dropout.p if dropout else 0.0, multiplier_k=multiplier[0], multiplier_v=multiplier[-1],
        strength_ptr=strength, eps=EPS,
        M=M, N=N, stride_rk=residual[0].stride(0) if residual else 0,
        stride_rv=residual[-1].stride(0) if residual else 0,
        ACT=act, RESIDUAL=residual is not None, DROPOUT=dropout is not None, PRELU=alpha is not None,
        ACC=tl_dtype(acc_dtype(a.dtype)), BLOCK_R=block.rows, BLOCK_N=block.columns, num_warps=block.warps,
    )  # fmt: skip
    return outs


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
    """The two vectors that a LayerNorm folds into the linear after it."""
    wait_for_launches_before()
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


def norm_vectors(w: Streams, bias: Streams, gamma: Streams, beta: Streams) -> tuple[Tensor, Tensor]:
    """``W γ`` and ``W β + bias`` for both streams. Shape: w [N, K], bias [N], gamma, beta [K] → two of [streams, N]."""
    N, K = w[0].shape
    acc = acc_dtype(w[0].dtype)
    wg, wb = (torch.empty(len(w), N, device=w[0].device, dtype=acc) for _ in range(2))
    block = row_tiles("norm vectors", N, K, target_of(w[0].device))
    launch(
        norm_vectors_kernel,
        (triton.cdiv(N, block.rows), len(w)),
        flops=4 * len(w) * N * K,
        steps=triton.cdiv(K, block.columns),
        writes=("wg_ptr", "wb_ptr"),
        w_k_ptr=w[0], w_v_ptr=w[-1], bias_k_ptr=bias[0], bias_v_ptr=bias[-1], g_k_ptr=gamma[0], g_v_ptr=gamma[-1],
        b_k_ptr=beta[0], b_v_ptr=beta[-1], wg_ptr=wg, wb_ptr=wb, N=N, K=K,
        ACC=tl_dtype(acc), BLOCK_N=block.rows, BLOCK_K=block.columns, num_warps=block.warps,
    )  # fmt: skip
    return wg, wb
