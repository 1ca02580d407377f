"""What is left of a layer after its linear, over whole rows, where its launch does not see to it.

That is a LayerNorm that no product follows, and everything after a product of the vendor's library.
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
def layer_output_forward_kernel(
    a_ptr,  # [2, M, N]: the pre-activations, without wb
    wb_ptr,  # [2, N]: W β + b of a LayerNorm in front, or None
    g_k_ptr,  # [N]: γ, with NORM
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
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRELU: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``out = [residual + m·] dropout([LN] act(a))``, BLOCK_R rows a program."""
    wait_for_launches_before()
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    stream = tl.program_id(1)
    out_ptr = out_k_ptr
    if stream == 1:
        out_ptr = out_v_ptr
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
    y = activate(a, alpha, ACT)
    if NORM:
        g_ptr, b_ptr = g_k_ptr, b_k_ptr
        if stream == 1:
            g_ptr, b_ptr = g_v_ptr, b_v_ptr
        delta, rstd = normalise(y, inside, N, eps)
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


def layer_output_forward(
    a: Tensor,
    act: str,
    *,
    out_dtype: torch.dtype,
    gamma: Streams | None = None,
    beta: Streams | None = None,
    alpha: Streams | None = None,
    dropout: Dropout | None = None,
    residual: Streams | None = None,
    multiplier: tuple[float, ...] = (1.0, 1.0),
    strength: Tensor | None = None,
    wb: Tensor | None = None,
    stack: bool = False,
    over: bool = False,
) -> tuple[Streams, Tensor | None]:
    """``[residual + m·] dropout([LN] act(a + wb))``. Shape: a [streams, M, N], wb [streams, N] → [M, N] per stream.

    ``stack`` asks for them as one tensor too, ``over`` allows that to be ``a`` itself.
    """
    streams, M, N = a.shape
    stacked = (a if over else torch.empty_like(a, dtype=out_dtype)) if stack else None
    outs: Streams = () if stacked is None else tuple(stacked)
    if stacked is None:
        outs = tuple(torch.empty(M, N, device=a.device, dtype=out_dtype) for _ in range(streams))
    block = row_tiles("whole rows", M, N, target_of(a.device))
    launch(
        layer_output_forward_kernel,
        (triton.cdiv(M, block.rows), streams),
        steps=1,
        writes=("out_k_ptr", "out_v_ptr"),
        a_ptr=a, wb_ptr=wb, g_k_ptr=gamma[0] if gamma else None, g_v_ptr=gamma[-1] if gamma else None,
        b_k_ptr=beta[0] if beta else None, b_v_ptr=beta[-1] if beta else None,
        alpha_k_ptr=alpha[0] if alpha else None, alpha_v_ptr=alpha[-1] if alpha else None,
        residual_k_ptr=residual[0] if residual else None, residual_v_ptr=residual[-1] if residual else None,
        out_k_ptr=outs[0], out_v_ptr=outs[-1],
        seed_ptr=dropout.seed if dropout else None, layer_id=dropout.layer_id if dropout else 0,
        dropout=dropout.p if dropout else 0.0, multiplier_k=multiplier[0], multiplier_v=multiplier[-1],
        strength_ptr=strength, eps=EPS,
        M=M, N=N, stride_rk=residual[0].stride(0) if residual else 0,
        stride_rv=residual[-1].stride(0) if residual else 0,
        ACT=act, NORM=gamma is not None, RESIDUAL=residual is not None, DROPOUT=dropout is not None,
        PRELU=alpha is not None, ACC=tl_dtype(acc_dtype(a.dtype)), BLOCK_R=block.rows, BLOCK_N=block.columns,
        num_warps=block.warps,
    )  # fmt: skip
    return outs, stacked
