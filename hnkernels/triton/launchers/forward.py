"""The launches of the forward pass: MLP layers, LayerNorm, projections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
    rows_at_once,
    tl_dtype,
)
from hnkernels.triton.layer_forward import mlp_layer_forward_kernel
from hnkernels.triton.project import linear_streams_kernel
from hnkernels.triton.rows import norm_forward_kernel, norm_vectors_kernel
from hnkernels.triton.tiling import choose, target_of


@dataclass(frozen=True)
class NormIn:
    """A LayerNorm that waits for the product behind it: moments of the row parts, and the vectors W γ and W β + b."""

    moments: Tensor  # [streams, tiles, M, 2]
    width: int  # columns of a part
    wg: Tensor  # [streams, N]
    wb: Tensor  # [streams, N]
    gamma: Streams | None  # γ [K], where the activations that come in do not have it in them yet


class LayerOutput(NamedTuple):
    """What a layer's launch leaves: its output (that of a hidden layer stacked too), the pre-activations and statistics
    if wanted, the moments if a LayerNorm follows, and the rider's product."""

    out: Streams | None
    stacked: Tensor | None
    pre: Tensor | None
    stats: Tensor | None
    moments: Tensor | None
    width: int
    rider: Tensor | None


def layer_forward(
    x: Streams,
    w: Streams,
    b: Streams,
    act: str,
    *,
    out_dtype: torch.dtype | None = None,
    out: bool = True,
    pre: bool = False,
    alpha: Streams | None = None,
    norm_in: NormIn | None = None,
    moments: bool = False,
    gamma: Streams | None = None,
    dropout: Dropout | None = None,
    residual: Streams | None = None,
    multiplier: tuple[float, ...] = (1.0, 1.0),
    strength: Tensor | None = None,
    rider: tuple[Tensor, Tensor | None] | None = None,
    stats: bool = False,
) -> LayerOutput:
    """``mlp_layer_forward_kernel``: x [M, K], w [N, K], b [N] per stream → out [M, N] per stream, and what is asked.

    ``moments`` asks for those of a LayerNorm behind, ``gamma`` is its γ, unless the next launch is to see to it;
    ``norm_in`` is one in front, and ``stats`` asks for the mean and 1/σ of its rows, [streams, M, 2]; ``rider`` is
    (weight [R, K], bias [R]) of ``to_q``, whose product with x_k comes along; ``strength`` [streams] fp32 is a factor
    on the multipliers.
    """
    (M, K), N, streams = x[0].shape, w[0].shape[0], len(x)
    dtype, device = w[0].dtype, x[0].device
    acc = acc_dtype(dtype)
    tiles = choose("forward", M, N, K, dtype, target_of(device))
    rider_n = 0 if rider is None else rider[0].shape[0]
    columns = triton.cdiv(N, tiles.block_n)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, device=device, dtype=dtype)

    pre_tensor = empty(streams, M, N) if pre else None
    parts = empty(streams, columns, M, 2, dtype=acc) if moments else None
    row_stats = empty(streams, M, 2, dtype=acc) if stats and norm_in is not None else None
    stacked = empty(streams, M, N) if out and residual is None else None
    outs = None if stacked is None else tuple(stacked)
    if out and stacked is None:
        outs = tuple(empty(M, N, dtype=out_dtype or dtype) for _ in x)
    rider_out = empty(M, rider_n) if rider is not None else None
    b_k, b_v = (norm_in.wb[0], norm_in.wb[-1]) if norm_in is not None else (b[0], b[-1])
    grid_n = max(columns, triton.cdiv(rider_n, tiles.block_n))
    launch(
        mlp_layer_forward_kernel,
        (triton.cdiv(M, tiles.block_m) * grid_n, streams + (rider is not None)),
        tiles=tiles,
        flops=2 * M * K * (streams * N + rider_n),
        reads=[*x, *w, b_k, b_v, *(alpha or ()), *(gamma or ()), *(residual or ()), strength, *(rider or ()),
               *((norm_in.moments, norm_in.wg, *(norm_in.gamma or ())) if norm_in else ())],
        writes=[*((stacked,) if stacked is not None else outs or ()), pre_tensor, row_stats, parts, rider_out],
        x_k_ptr=x[0], x_v_ptr=x[-1], w_k_ptr=w[0], w_v_ptr=w[-1], b_k_ptr=b_k, b_v_ptr=b_v,
        wg_k_ptr=norm_in.wg[0] if norm_in else None, wg_v_ptr=norm_in.wg[-1] if norm_in else None,
        g_in_k_ptr=norm_in.gamma[0] if norm_in and norm_in.gamma else None,
        g_in_v_ptr=norm_in.gamma[-1] if norm_in and norm_in.gamma else None,
        alpha_k_ptr=alpha[0] if alpha else None, alpha_v_ptr=alpha[-1] if alpha else None,
        g_k_ptr=gamma[0] if gamma else None, g_v_ptr=gamma[-1] if gamma else None,
        residual_k_ptr=residual[0] if residual else None, residual_v_ptr=residual[-1] if residual else None,
        pre_ptr=pre_tensor, out_k_ptr=outs[0] if outs else None, out_v_ptr=outs[-1] if outs else None,
        moments_in_ptr=norm_in.moments if norm_in else None, stats_ptr=row_stats, moments_out_ptr=parts,
        rider_w_ptr=rider[0] if rider else None, rider_b_ptr=rider[1] if rider else None, rider_out_ptr=rider_out,
        seed_ptr=dropout.seed if dropout else None, site=dropout.site if dropout else 0,
        dropout=dropout.p if dropout else 0.0, multiplier_k=multiplier[0], multiplier_v=multiplier[-1],
        strength_ptr=strength, eps=EPS,
        M=M, N=N, K=K, RIDER_N=rider_n,
        tiles_in=norm_in.moments.shape[1] if norm_in else 0, width_in=norm_in.width if norm_in else 1,
        stride_xk=x[0].stride(0), stride_xv=x[-1].stride(0),
        stride_rk=residual[0].stride(0) if residual else 0, stride_rv=residual[-1].stride(0) if residual else 0,
        ACT=act, NORM_IN=norm_in is not None, NORM_OUT=moments, RESIDUAL=residual is not None,
        DROPOUT=dropout is not None, PRELU=alpha is not None, **product(dtype), EVEN=K % tiles.block_k == 0,
    )  # fmt: skip
    return LayerOutput(outs, stacked, pre_tensor, row_stats, parts, tiles.block_n, rider_out)


def norm_vectors(w: Streams, bias: Streams, gamma: Streams, beta: Streams) -> tuple[Tensor, Tensor]:
    """``W γ`` and ``W β + bias`` for both streams. Shape: w [N, K], bias [N], gamma, beta [K] → two of [streams, N]."""
    N, K = w[0].shape
    acc = acc_dtype(w[0].dtype)
    wg, wb = (torch.empty(len(w), N, device=w[0].device, dtype=acc) for _ in range(2))
    block = 16
    launch(
        norm_vectors_kernel,
        (triton.cdiv(N, block), len(w)),
        flops=4 * len(w) * N * K,
        reads=[*w, *bias, *gamma, *beta],
        writes=[wg, wb],
        w_k_ptr=w[0], w_v_ptr=w[-1], bias_k_ptr=bias[0], bias_v_ptr=bias[-1], g_k_ptr=gamma[0], g_v_ptr=gamma[-1],
        b_k_ptr=beta[0], b_v_ptr=beta[-1], wg_ptr=wg, wb_ptr=wb, N=N, K=K,
        ACC=tl_dtype(acc), BLOCK_N=block, BLOCK_K=128,
    )  # fmt: skip
    return wg, wb


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
    launch(
        norm_forward_kernel,
        (triton.cdiv(M, rows_at_once(N)), streams),
        reads=[a, wb, *gamma, *beta, *(alpha or ()), *(residual or ()), strength],
        writes=outs,
        a_ptr=a, wb_ptr=wb, g_k_ptr=gamma[0], g_v_ptr=gamma[-1], b_k_ptr=beta[0], b_v_ptr=beta[-1],
        alpha_k_ptr=alpha[0] if alpha else None, alpha_v_ptr=alpha[-1] if alpha else None,
        residual_k_ptr=residual[0] if residual else None, residual_v_ptr=residual[-1] if residual else None,
        out_k_ptr=outs[0], out_v_ptr=outs[-1],
        seed_ptr=dropout.seed if dropout else None, site=dropout.site if dropout else 0,
        dropout=dropout.p if dropout else 0.0, multiplier_k=multiplier[0], multiplier_v=multiplier[-1],
        strength_ptr=strength, eps=EPS,
        M=M, N=N, stride_rk=residual[0].stride(0) if residual else 0,
        stride_rv=residual[-1].stride(0) if residual else 0,
        ACT=act, RESIDUAL=residual is not None, DROPOUT=dropout is not None, PRELU=alpha is not None,
        ACC=tl_dtype(acc_dtype(a.dtype)), **row_blocks(N),
    )  # fmt: skip
    return outs


def linear(
    x: Streams,
    w: Streams,
    b: tuple[Tensor | None, ...] | None = None,
    *,
    transposed: bool = False,
    z: Tensor | None = None,
    g: Streams | None = None,
) -> Streams:
    """``x wᵀ + b`` per stream (``x w`` if transposed), plus ``z gᵀ`` if given: the MLP's last linear in the projection.

    Shape: x [M, K], w [N, K], or [K, N] if transposed, b [N], z [streams, M, H], g [N, H] → [M, N]. N and K may differ
    between the streams.
    """
    M, dtype, device = x[0].shape[0], x[0].dtype, x[0].device
    sizes = [t.shape[::-1] if transposed else t.shape for t in w]
    widest, deepest = (max(size[i] for size in sizes) for i in (0, 1))
    hidden = 0 if z is None else z.shape[-1]
    tiles = choose("backward" if transposed else "forward", M, widest, deepest, dtype, target_of(device))
    outs = tuple(torch.empty(M, n, device=device, dtype=dtype) for n, _ in sizes)
    if b is None or all(t is None for t in b):
        b = (None,)
    else:  # a bias on one stream only is rare: the other one's is 0
        b = tuple(
            torch.zeros(o.shape[1], device=device, dtype=dtype) if t is None else t
            for t, o in zip(b, outs, strict=True)
        )
    launch(
        linear_streams_kernel,
        (triton.cdiv(M, tiles.block_m) * triton.cdiv(widest, tiles.block_n), len(x)),
        tiles=tiles,
        flops=2 * M * sum(n * (k + hidden) for n, k in sizes),
        reads=[*x, *w, *b, z, *(g or ())],
        writes=outs,
        x_k_ptr=x[0], x_v_ptr=x[-1], w_k_ptr=w[0], w_v_ptr=w[-1], b_k_ptr=b[0], b_v_ptr=b[-1],
        z_ptr=z, g_k_ptr=g[0] if g else None, g_v_ptr=g[-1] if g else None, out_k_ptr=outs[0], out_v_ptr=outs[-1],
        M=M, N_k=sizes[0][0], N_v=sizes[-1][0], K_k=sizes[0][1], K_v=sizes[-1][1], H=hidden,
        stride_xk=x[0].stride(0), stride_xv=x[-1].stride(0),
        TRANSPOSED=transposed, **product(dtype),
        EVEN=all(k % tiles.block_k == 0 for _, k in sizes) and hidden % tiles.block_k == 0
        and not (transposed and any(n % tiles.block_n for n, _ in sizes)),
    )  # fmt: skip
    return outs
