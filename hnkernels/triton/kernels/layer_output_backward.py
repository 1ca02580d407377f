"""The backward pass of activation, LayerNorm and dropout over whole rows.

A program holds some whole rows at a time; K and V are the two halves of the grid.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton._compat import convert
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.activations import activate, derivative
from hnkernels.triton.kernels.arguments import EPS, Dropout, LayerGradient, Streams, acc_dtype, tl_dtype
from hnkernels.triton.kernels.dropout import dropout_scale
from hnkernels.triton.kernels.layer_output_forward import normalise
from hnkernels.triton.kernels.norm_backward import row_dots
from hnkernels.triton.launch import launch
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import row_programs, row_tiles


@triton.jit(do_not_specialize=["layer_id", "M", "row_of_sums", "stream_of_sums"])
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
    bias_ptr,  # [programs, 2, N] fp32: takes Σ da, the bias's gradient, or None
    seed_ptr,
    layer_id,
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
    """The gradient through dropout, LayerNorm and activation; also Σ da, Σ dγ, Σ dβ and prelu's slope per program.

    With z = act(a), ẑ = (z − μ)·rstd and g = m·dh∘mask (Ba, Kiros, Hinton 2016, differentiated):

        dβ = Σ g      dγ = Σ g∘ẑ      t = g∘γ      dz = rstd·(t − mean(t) − ẑ·mean(t∘ẑ))      da = dz∘act'(a)
    """
    wait_for_launches_before()
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
        g_ptr = g_k_ptr
        if stream == 1:
            g_ptr = g_v_ptr
        gamma = tl.load(g_ptr + cols, mask=cols < N, other=0.0).to(ACC)[None, :]
        if h_ptr is not None:
            b_ptr = b_k_ptr
            if stream == 1:
                b_ptr = b_v_ptr
            beta = tl.load(b_ptr + cols, mask=cols < N, other=0.0).to(ACC)[None, :]
        d_gamma = tl.zeros((BLOCK_R, BLOCK_N), ACC)
        d_beta = tl.zeros((BLOCK_R, BLOCK_N), ACC)
    if bias_ptr is not None:
        d_bias = tl.zeros((BLOCK_R, BLOCK_N), ACC)
    for start in range(program * BLOCK_R, M, programs * BLOCK_R):
        rows = tl.cast(start, tl.int64) + tl.arange(0, BLOCK_R)
        mask = (rows < M)[:, None] & inside  # [BLOCK_R, BLOCK_N]
        at = stream * (tl.cast(M, tl.int64) * N) + rows[:, None] * N + cols[None, :]
        g = m * tl.load(dh_ptr + rows[:, None] * stride_dm + cols[None, :], mask=mask, other=0.0).to(ACC)
        if DROPOUT:
            scale = dropout_scale(seed_ptr, dropout, rows, cols, layer_id + stream)
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
        if bias_ptr is not None:
            d_bias += tl.where(mask, g, 0.0)
        if wg_ptr is not None:
            by_wg, by_a = row_dots(g, kept, wg_ptr + stream * N, cols, N)
            dots = dots_ptr + (stream * tl.cast(M, tl.int64) + rows) * 2
            tl.store(dots, by_wg, mask=rows < M)
            tl.store(dots + 1, by_a, mask=rows < M)
    if bias_ptr is not None:
        at = bias_ptr + (program.to(tl.int64) * tl.num_programs(1) + stream) * N + cols
        tl.store(at, tl.sum(d_bias, axis=0), mask=cols < N)
    if sums_ptr is not None:
        sums = sums_ptr + program.to(tl.int64) * row_of_sums + stream * stream_of_sums
        if NORM:
            tl.store(sums + cols, tl.sum(d_gamma, axis=0), mask=cols < N)
            tl.store(sums + N + cols, tl.sum(d_beta, axis=0), mask=cols < N)
            sums += 2 * N
        if PRELU:
            tl.store(sums, tl.sum(d_alpha))


def layer_output_backward(
    dh: Streams,
    a: Tensor | None,
    act: str,
    *,
    gamma: Streams | None = None,
    beta: Streams | None = None,
    alpha: Streams | None = None,
    dropout: Dropout | None = None,
    multiplier: tuple[float, ...] = (1.0, 1.0),
    with_h: bool = False,
    sums: Tensor | None = None,
    sums_at: int = 0,
    stream_of_sums: int = 0,
    wb: Tensor | None = None,
    wg: Tensor | None = None,
    with_bias: bool = False,
    out: Tensor | None = None,
) -> LayerGradient:
    """``layer_output_backward_kernel``: dh [M, N] per stream, a [streams, M, N] → da, and what is asked.

    ``sums`` [programs, P] takes Σ dγ, Σ dβ and prelu's slope from element ``sums_at`` on. ``wb`` and ``wg``
    [streams, N] are W β + b and W γ of a LayerNorm in front of this layer's product; with ``wg`` that LayerNorm's dots
    are asked for. da is ``out`` if given, which may be what dh are the streams of.
    """
    M, N = dh[0].shape
    device, dtype = dh[0].device, dh[0].dtype
    da = torch.empty(len(dh), M, N, device=device, dtype=dtype) if out is None else out
    h = torch.empty_like(da) if with_h else None
    dots = torch.empty(len(dh), 1, M, 2, device=device, dtype=acc_dtype(dtype)) if wg is not None else None
    target = target_of(device)
    block, programs = row_tiles("summed rows", M, N, target), row_programs(M, target)
    bias = torch.empty(programs, len(dh) * N, device=device, dtype=acc_dtype(dtype)) if with_bias else None
    launch(
        layer_output_backward_kernel,
        (programs, len(dh)),
        steps=triton.cdiv(M, max(programs, 1) * block.rows),
        writes=("da_ptr", "h_ptr", "sums_ptr", "dots_ptr", "bias_ptr"),
        dh_k_ptr=dh[0], dh_v_ptr=dh[-1], a_ptr=a, g_k_ptr=gamma[0] if gamma else None,
        g_v_ptr=gamma[-1] if gamma else None, b_k_ptr=beta[0] if beta and with_h else None,
        b_v_ptr=beta[-1] if beta and with_h else None,
        alpha_k_ptr=alpha[0] if alpha else None, alpha_v_ptr=alpha[-1] if alpha else None, da_ptr=da, h_ptr=h,
        sums_ptr=None if sums is None else sums[:, sums_at : sums_at + len(dh) * stream_of_sums],
        wb_ptr=wb, wg_ptr=wg, dots_ptr=dots, bias_ptr=bias,
        seed_ptr=dropout.seed if dropout else None, layer_id=dropout.layer_id if dropout else 0,
        dropout=dropout.p if dropout else 0.0, multiplier_k=multiplier[0], multiplier_v=multiplier[-1], eps=EPS,
        M=M, N=N, stride_dk=dh[0].stride(0), stride_dv=dh[-1].stride(0),
        row_of_sums=0 if sums is None else sums.stride(0), stream_of_sums=stream_of_sums,
        ACT=act, NORM=gamma is not None, DROPOUT=dropout is not None, PRELU=alpha is not None,
        ACC=tl_dtype(acc_dtype(dtype)), BLOCK_R=block.rows, BLOCK_N=block.columns, num_warps=block.warps,
    )  # fmt: skip
    return LayerGradient(da, h, dots, bias)
