"""The launches that carry gradients down through the layers."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from hnkernels.triton.launch import launch
from hnkernels.triton.launchers.arguments import (
    EPS,
    Dropout,
    Streams,
    acc_dtype,
    product,
    row_blocks,
    row_programs,
    tl_dtype,
)
from hnkernels.triton.layer_backward import hidden_gradient_kernel, input_gradient_kernel
from hnkernels.triton.norm_backward import normed_gradient_kernel
from hnkernels.triton.rows import layer_output_backward_kernel
from hnkernels.triton.tiling import choose, target_of


def hidden_gradient(
    da: Streams,
    w: Streams,
    *,
    act: str = "linear",
    a: Tensor | None = None,
    wb: Tensor | None = None,
    fused: bool,
    with_h: bool = False,
    dropout: Dropout | None = None,
    scale: tuple[float, ...] = (1.0, 1.0),
) -> tuple[Tensor, Tensor | None]:
    """``hidden_gradient_kernel``: da [M, K], w [K, N] per stream, a [streams, M, N] → da or dh, and h, like a."""
    (M, K), N = da[0].shape, w[0].shape[1]
    dtype, device = da[0].dtype, da[0].device
    tiles = choose("backward", M, N, K, dtype, target_of(device))
    out = torch.empty(len(da), M, N, device=device, dtype=dtype)
    h = torch.empty_like(out) if with_h else None
    launch(
        hidden_gradient_kernel,
        (triton.cdiv(M, tiles.block_m) * triton.cdiv(N, tiles.block_n), len(da)),
        tiles=tiles,
        flops=2 * len(da) * M * N * K,
        reads=[*da, *w, a, wb],
        writes=[out, h],
        da_k_ptr=da[0], da_v_ptr=da[-1], w_k_ptr=w[0], w_v_ptr=w[-1], a_ptr=a, wb_ptr=wb, out_ptr=out, h_ptr=h,
        seed_ptr=dropout.seed if dropout else None, site=dropout.site if dropout else 0,
        dropout=dropout.p if dropout else 0.0, scale_k=scale[0], scale_v=scale[-1],
        M=M, N=N, K=K, stride_dk=da[0].stride(0), stride_dv=da[-1].stride(0),
        ACT=act, FUSED=fused, DROPOUT=dropout is not None, **product(dtype),
        EVEN=K % tiles.block_k == N % tiles.block_n == 0,
    )  # fmt: skip
    return out, h


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
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``layer_output_backward_kernel``: dh [M, N] per stream, a [streams, M, N] → da, and h, like a.

    ``sums`` [programs, P] takes Σ dγ, Σ dβ and prelu's slope from element ``sums_at`` on. ``wb`` and ``wg``
    [streams, N] are W β + b and W γ of a LayerNorm in front of this layer's product; with ``wg`` what that LayerNorm
    needs of da comes third, [streams, 1, M, 2].
    """
    M, N = dh[0].shape
    device, dtype = dh[0].device, dh[0].dtype
    da = torch.empty(len(dh), M, N, device=device, dtype=dtype)
    h = torch.empty_like(da) if with_h else None
    dots = torch.empty(len(dh), 1, M, 2, device=device, dtype=acc_dtype(dtype)) if wg is not None else None
    launch(
        layer_output_backward_kernel,
        (row_programs(M), len(dh)),
        reads=[*dh, a, *(gamma or ()), *((beta or ()) if with_h else ()), *(alpha or ()), wb, wg],
        writes=[da, h, dots, None if sums is None else sums[:, sums_at : sums_at + 2 * stream_of_sums]],
        dh_k_ptr=dh[0], dh_v_ptr=dh[-1], a_ptr=a, g_k_ptr=gamma[0] if gamma else None,
        g_v_ptr=gamma[-1] if gamma else None, b_k_ptr=beta[0] if beta else None, b_v_ptr=beta[-1] if beta else None,
        alpha_k_ptr=alpha[0] if alpha else None, alpha_v_ptr=alpha[-1] if alpha else None, da_ptr=da, h_ptr=h,
        sums_ptr=None if sums is None else sums[:, sums_at:],
        wb_ptr=wb, wg_ptr=wg, dots_ptr=dots,
        seed_ptr=dropout.seed if dropout else None, site=dropout.site if dropout else 0,
        dropout=dropout.p if dropout else 0.0, multiplier_k=multiplier[0], multiplier_v=multiplier[-1], eps=EPS,
        M=M, N=N, stride_dk=dh[0].stride(0), stride_dv=dh[-1].stride(0),
        row_of_sums=0 if sums is None else sums.stride(0), stream_of_sums=stream_of_sums,
        ACT=act, NORM=gamma is not None, DROPOUT=dropout is not None, PRELU=alpha is not None,
        ACC=tl_dtype(acc_dtype(dtype)), **row_blocks(N),
    )  # fmt: skip
    return da, h, dots


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
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``normed_gradient_kernel``: da' [M, K], w [K, N] per stream, a [streams, M, N] → da and ẑ, like a, and the dots.

    ``stats`` [streams, M, 2] and ``dots`` [streams, tiles, M, 2] are of this layer's LayerNorm; ``wb``, ``wg`` and
    the third result, with ``wg``, of one in front of this layer's own product.
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
        reads=[*da, *w, *gamma, a, stats, dots, wb, wg],
        writes=[out, normal, dots_out],
        da_k_ptr=da[0], da_v_ptr=da[-1], w_k_ptr=w[0], w_v_ptr=w[-1], g_k_ptr=gamma[0], g_v_ptr=gamma[-1], a_ptr=a,
        stats_ptr=stats, dots_in_ptr=dots, out_ptr=out, normal_ptr=normal,
        wb_ptr=wb, wg_ptr=wg, dots_out_ptr=dots_out,
        M=M, N=N, K=K, tiles_in=dots.shape[1], ACT=act, **product(dtype),
        EVEN=K % tiles.block_k == N % tiles.block_n == 0,
    )  # fmt: skip
    return out, normal, dots_out


def input_gradient(
    dy: Streams,
    da: Streams,
    w: Streams,
    *,
    shared: bool,
    out_dtype: torch.dtype,
    rider: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``dy + da w`` per stream, or their sum if the streams share x; ``rider`` is (dq [M, Q], w_q [Q, D]).

    Shape: dy [M, D], da [M, K], w [K, D] → [M, D], and a second one unless shared.
    """
    (M, D), K = dy[0].shape, da[0].shape[1]
    dtype, device = da[0].dtype, dy[0].device
    tiles = choose("backward", M, D, K, dtype, target_of(device))
    Q = 0 if rider is None else rider[0].shape[1]
    dx_k = torch.empty(M, D, device=device, dtype=out_dtype)
    dx_v = torch.empty_like(dx_k) if len(dy) == 2 and not shared else None
    launch(
        input_gradient_kernel,
        (triton.cdiv(M, tiles.block_m) * triton.cdiv(D, tiles.block_n), 1 if shared else len(dy)),
        tiles=tiles,
        flops=2 * M * D * (len(dy) * K + Q),
        reads=[*dy, *da, *w, *(rider or ())],
        writes=[dx_k, dx_v],
        dy_k_ptr=dy[0], dy_v_ptr=dy[-1], da_k_ptr=da[0], da_v_ptr=da[-1], w_k_ptr=w[0], w_v_ptr=w[-1],
        dq_ptr=rider[0] if rider else None, w_q_ptr=rider[1] if rider else None,
        dx_k_ptr=dx_k, dx_v_ptr=dx_k if dx_v is None else dx_v,
        M=M, D=D, K=K, Q=Q, SHARED=shared, **product(dtype),
        EVEN=K % tiles.block_k == Q % tiles.block_k == D % tiles.block_n == 0,
    )  # fmt: skip
    return dx_k, dx_v
