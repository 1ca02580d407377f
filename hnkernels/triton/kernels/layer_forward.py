"""One layer of the MLP, of the K and the V stream in one launch: linear, activation, LayerNorm, dropout, residual.

A LayerNorm after the layer is split between this launch and the next one. This one multiplies the activated tile by
γ (or leaves that to the next one, where the unscaled tile serves backward too) and stores the mean and the squared
deviations of its part of every row; the next one combines these (Chan, Golub, LeVeque 1979) and normalises *after* its
product, because normalising is affine in each row:

    LN(z) Wᵀ = rstd·((z∘γ) Wᵀ − μ·(W γ)) + W β

so that only the two vectors W γ and W β + b are needed besides, and W stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton import vendor
from hnkernels.triton._compat import convert
from hnkernels.triton.autotune import choose
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.activations import activate
from hnkernels.triton.kernels.arguments import EPS, Dropout, Streams, acc_dtype, product
from hnkernels.triton.kernels.dropout import dropout_scale
from hnkernels.triton.kernels.layer_output_forward import layer_output_forward
from hnkernels.triton.kernels.tiles import halves, multiply, tile_of
from hnkernels.triton.launch import launch
from hnkernels.triton.route import Route, route
from hnkernels.triton.target import target_of


@triton.jit
def combined_moments(
    moments_ptr,  # [TILES, M, 2]: mean and sum of squared deviations per row and tile
    rows,  # [BLOCK_M] int64
    M,
    N,
    tiles,
    width,  # columns of a tile; the last one may have fewer
    eps,
):
    """Mean and reciprocal standard deviation of whole rows from those of their parts. Shape: two of [BLOCK_M]."""
    mask = rows < M
    mean = tl.zeros(rows.shape, moments_ptr.dtype.element_ty)
    squares = tl.zeros(rows.shape, moments_ptr.dtype.element_ty)
    for tile in range(tiles):
        at = moments_ptr + (tile * tl.cast(M, tl.int64) + rows) * 2
        part_mean = tl.load(at, mask=mask, other=0.0)
        part_squares = tl.load(at + 1, mask=mask, other=0.0)
        count = tile * width
        part = tl.minimum(N - count, width)
        delta = part_mean - mean
        share = tl.cast(part, tl.float32) / tl.cast(count + part, tl.float32)
        mean += delta * share
        squares += part_squares + delta * delta * tl.cast(count, tl.float32) * share
    return mean, tl.rsqrt(squares / N + eps)


@triton.jit(do_not_specialize=["layer_id", "M", "tiles_in", "width_in"])
def mlp_layer_forward_kernel(
    x_k_ptr,  # [M, K]
    x_v_ptr,  # [M, K]
    w_k_ptr,  # [N, K]
    w_v_ptr,  # [N, K]
    b_k_ptr,  # [N]: bias; with NORM_IN fp32 W β + b
    b_v_ptr,
    wg_k_ptr,  # [N] fp32: W γ, with NORM_IN
    wg_v_ptr,
    g_in_k_ptr,  # [K]: γ of the LayerNorm in front, where x does not have it in it yet; or None
    g_in_v_ptr,
    alpha_k_ptr,  # [1]: prelu's slope
    alpha_v_ptr,
    g_k_ptr,  # [N]: γ of the LayerNorm that follows, with NORM_OUT; None to leave it to the next launch
    g_v_ptr,
    residual_k_ptr,  # [M, N], with RESIDUAL
    residual_v_ptr,
    pre_ptr,  # [2, M, N]: pre-activations for backward, with NORM_IN without W β + b; or None
    out_k_ptr,  # [M, N], or None where a row kernel goes on from the pre-activations
    out_v_ptr,
    moments_in_ptr,  # [2, tiles_in, M, 2] fp32, with NORM_IN
    stats_ptr,  # [2, M, 2] fp32: takes the mean and 1/σ of the rows that come in, or None
    moments_out_ptr,  # [2, tiles of N, M, 2] fp32, with NORM_OUT
    query_w_ptr,  # [QUERY_N, K]: to_q's weight, or None
    query_b_ptr,  # [QUERY_N] or None
    query_out_ptr,  # [M, QUERY_N]
    seed_ptr,  # [1] int64, with DROPOUT
    layer_id,  # dropout's number of this layer; the stream is added
    dropout,
    multiplier_k,
    multiplier_v,
    strength_ptr,  # [2] fp32: another factor on the multipliers, read here and now; or None
    eps,
    M,
    N,
    K,
    QUERY_N,
    tiles_in,
    width_in,
    stride_xk,
    stride_xv,
    stride_rk,
    stride_rv,
    ACT: tl.constexpr,
    NORM_IN: tl.constexpr,
    NORM_OUT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRELU: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``out = [residual + m·] dropout(act(x wᵀ + b)) [∘γ]``; with a query, stream 2 is ``x query_wᵀ + query_b``."""
    wait_for_launches_before()
    stream = tl.program_id(1)
    x_ptr, w_ptr, b_ptr, stride_xm = x_k_ptr, w_k_ptr, b_k_ptr, stride_xk
    out_ptr = out_k_ptr
    width = N
    if stream == 1:
        x_ptr, w_ptr, b_ptr, stride_xm = x_v_ptr, w_v_ptr, b_v_ptr, stride_xv
        if out_k_ptr is not None:  # older compilers cannot choose between two that are None
            out_ptr = out_v_ptr
    if query_w_ptr is not None:
        if stream == 2:
            w_ptr, width = query_w_ptr, QUERY_N
        # The grid is as large as the widest stream needs.
        if tl.program_id(0) >= tl.cdiv(M, BLOCK_M) * tl.cdiv(width, BLOCK_N):
            return
    tile_m, tile_n = tile_of(tl.program_id(0), M, width, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < width
    mask = (rows < M)[:, None] & col_mask[None, :]  # [BLOCK_M, BLOCK_N]
    tl.assume(K > 0)  # so that acc is not set to zero a second time, for a loop that does nothing
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    if g_in_k_ptr is not None:
        g_in_ptr = g_in_k_ptr
        if stream == 1:
            g_in_ptr = g_in_v_ptr
        a = multiply(
            acc, x_ptr, w_ptr, rows, cols, M, width, K, stride_xm, K, False, BLOCK_K, EVEN, PRECISION, g_in_ptr
        )  # fmt: skip
    else:
        a = multiply(acc, x_ptr, w_ptr, rows, cols, M, width, K, stride_xm, K, False, BLOCK_K, EVEN, PRECISION)

    out_at = rows[:, None] * width + cols[None, :]
    if query_w_ptr is not None:
        if stream == 2:
            if query_b_ptr is not None:
                a += tl.load(query_b_ptr + cols, mask=col_mask, other=0.0).to(ACC)[None, :]
            tl.store(query_out_ptr + out_at, convert(a, query_out_ptr.dtype.element_ty), mask=mask)
            return

    pre_at = None
    if pre_ptr is not None:
        pre_at = pre_ptr + stream * (tl.cast(M, tl.int64) * N)
    wg_ptr = wg_k_ptr  # one by one: older compilers take no tuple with None in it
    alpha_ptr = alpha_k_ptr
    g_ptr = g_k_ptr
    residual_ptr = residual_k_ptr
    stride_rm, m = stride_rk, multiplier_k
    if stream == 1:
        stride_rm, m = stride_rv, multiplier_v
        if NORM_IN:
            wg_ptr = wg_v_ptr
        if PRELU:
            alpha_ptr = alpha_v_ptr
        if g_k_ptr is not None:
            g_ptr = g_v_ptr
        if RESIDUAL:
            residual_ptr = residual_v_ptr
    if strength_ptr is not None:
        m *= tl.load(strength_ptr + stream)
    mean, rstd = 0.0, 0.0
    if NORM_IN:
        moments = moments_in_ptr + stream * (tiles_in * tl.cast(M, tl.int64) * 2)
        mean, rstd = combined_moments(moments, rows, M, K, tiles_in, width_in, eps)
        if stats_ptr is not None:
            if tile_n == 0:
                at = stats_ptr + (stream * tl.cast(M, tl.int64) + rows) * 2
                tl.store(at, mean, mask=rows < M)
                tl.store(at + 1, rstd, mask=rows < M)
    left, right = halves(a, BLOCK_M, BLOCK_N)
    half: tl.constexpr = BLOCK_N // 2
    cols = tile_n * BLOCK_N + tl.arange(0, half)
    left_mean, left_squares = _store_layer(
        left, rows, cols, mean, rstd, b_ptr, wg_ptr, alpha_ptr, g_ptr, residual_ptr, stride_rm, m, pre_at, out_ptr,
        seed_ptr, dropout, layer_id + stream, M, N, ACT, NORM_IN, NORM_OUT, RESIDUAL, DROPOUT, PRELU,
    )  # fmt: skip
    right_mean, right_squares = _store_layer(
        right, rows, cols + half, mean, rstd, b_ptr, wg_ptr, alpha_ptr, g_ptr, residual_ptr, stride_rm, m, pre_at,
        out_ptr, seed_ptr, dropout, layer_id + stream, M, N, ACT, NORM_IN, NORM_OUT, RESIDUAL, DROPOUT, PRELU,
    )  # fmt: skip
    if NORM_OUT:
        count = tl.minimum(N - tile_n * BLOCK_N, BLOCK_N)
        rest = tl.maximum(count - half, 0)
        share = tl.cast(rest, tl.float32) / tl.cast(count, tl.float32)
        delta = right_mean - left_mean
        at = moments_out_ptr + ((stream * tl.cdiv(N, BLOCK_N) + tile_n) * tl.cast(M, tl.int64) + rows) * 2
        tl.store(at, left_mean + delta * share, mask=rows < M)
        squares = left_squares + right_squares + delta * delta * tl.cast(count - rest, tl.float32) * share
        tl.store(at + 1, squares, mask=rows < M)


@triton.jit
def _store_layer(
    a,  # [ROWS, COLS]: x wᵀ
    rows,  # [ROWS] int64
    cols,  # [COLS]
    mean,  # [ROWS], with NORM_IN
    rstd,
    b_ptr,
    wg_ptr,
    alpha_ptr,
    g_ptr,
    residual_ptr,
    stride_rm,
    m,
    pre_ptr,  # this stream's [M, N], or None
    out_ptr,
    seed_ptr,
    dropout,
    layer_id,
    M,
    N,
    ACT: tl.constexpr,
    NORM_IN: tl.constexpr,
    NORM_OUT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRELU: tl.constexpr,
):
    """The epilogue of ``mlp_layer_forward_kernel`` for a part of its tile; its moments, with NORM_OUT."""
    part_mean, part_squares = 0.0, 0.0
    col_mask = cols < N
    mask = (rows < M)[:, None] & col_mask[None, :]
    out_at = rows[:, None] * N + cols[None, :]
    if NORM_IN:
        wg = tl.load(wg_ptr + cols, mask=col_mask, other=0.0)
        a = rstd[:, None] * (a - mean[:, None] * wg[None, :])
    b = tl.load(b_ptr + cols, mask=col_mask, other=0.0).to(a.dtype)[None, :]
    if pre_ptr is not None:
        # Behind a LayerNorm with small γ the constant part may be far larger than the rest, and would round it away.
        pre = a if NORM_IN else a + b
        tl.store(pre_ptr + out_at, convert(pre, pre_ptr.dtype.element_ty), mask=mask)
    a += b
    if out_ptr is not None:
        alpha = 0.0
        if PRELU:
            alpha = tl.load(alpha_ptr).to(a.dtype)
        z = activate(a, alpha, ACT)
        if NORM_OUT:
            count = tl.maximum(tl.sum(col_mask.to(tl.int32), axis=0), 1)
            part_mean = tl.sum(tl.where(col_mask[None, :], z, 0.0), axis=1) / count  # [ROWS]
            delta = tl.where(col_mask[None, :], z - part_mean[:, None], 0.0)
            part_squares = tl.sum(delta * delta, axis=1)
        if g_ptr is not None:
            z *= tl.load(g_ptr + cols, mask=col_mask, other=0.0).to(a.dtype)[None, :]
        if DROPOUT:
            z *= dropout_scale(seed_ptr, dropout, rows, cols, layer_id)
        if RESIDUAL:
            residual = tl.load(residual_ptr + rows[:, None] * stride_rm + cols[None, :], mask=mask, other=0.0)
            z = residual.to(a.dtype) + m * z
        tl.store(out_ptr + out_at, convert(z, out_ptr.dtype.element_ty), mask=mask)
    return part_mean, part_squares


@dataclass(frozen=True)
class NormIn:
    """A LayerNorm that waits for the product after it: moments of the row parts, and the vectors W γ and W β + b."""

    moments: Tensor  # [streams, tiles, M, 2]
    width: int  # columns of a part
    wg: Tensor  # [streams, N]
    wb: Tensor  # [streams, N]
    gamma: Streams | None  # γ [K], where the activations that come in do not have it in them yet


class LayerOutput(NamedTuple):
    """What a layer's launch leaves: its output (that of a hidden layer stacked too), the pre-activations and statistics
    if wanted, the moments if a LayerNorm follows, and the query's product."""

    out: Streams | None
    stacked: Tensor | None
    pre: Tensor | None
    stats: Tensor | None
    moments: Tensor | None
    width: int
    query: Tensor | None


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
    query: tuple[Tensor, Tensor | None] | None = None,
    stats: bool = False,
) -> LayerOutput:
    """``mlp_layer_forward_kernel``: x [M, K], w [N, K], b [N] per stream → out [M, N] per stream, and what is asked.

    ``moments`` asks for those of a LayerNorm that follows, ``gamma`` is its γ, unless the next launch is to see to it;
    ``norm_in`` is one in front, and ``stats`` asks for the mean and 1/σ of its rows, [streams, M, 2]; ``query`` is
    (weight [R, K], bias [R]) of ``to_q``, whose product with x_k comes along; ``strength`` [streams] fp32 is a factor
    on the multipliers.
    """
    (M, K), N, streams = x[0].shape, w[0].shape[0], len(x)
    dtype, device = w[0].dtype, x[0].device
    acc = acc_dtype(dtype)
    heavy = alpha is not None or (norm_in is not None and moments)
    kind = "layer with dropout" if dropout else "layer" if heavy else "light layer"
    target = target_of(device)
    tiles = choose(kind, M, N, K, dtype, target)
    query_n = 0 if query is None else query[0].shape[0]
    by = Route(False)
    if norm_in is None and not moments:  # half a LayerNorm takes an epilogue of ours
        relu = act == "relu" and alpha is None and dropout is None and residual is None and not pre
        after = out and not relu and (act != "linear" or dropout is not None or residual is not None)
        beside = 2 * M * N * ((residual is not None) + (pre and out))
        moved = 2 * M * N * (2 + (residual is not None)) * after
        by = route(
            kind, M, N, K, dtype, target, tiles, [(M, N, K)] * 2, moved, launches=after, beside=beside, act=act
        )  # fmt: skip
        if by.vendor:
            a = torch.empty(streams, M, N, device=device, dtype=dtype)
            for i in range(streams):
                vendor.multiply(a[i], x[i], w[i].t(), b[i], relu=relu, why=by.why)
            query_out = None if query is None else vendor.linear(x[0], *query)
            results: Streams = tuple(a)
            together: Tensor | None = a
            if after:
                results, together = layer_output_forward(
                    a, act, out_dtype=out_dtype or dtype, alpha=alpha, dropout=dropout, residual=residual,
                    multiplier=multiplier, strength=strength, stack=residual is None, over=not pre,
                )  # fmt: skip
            return LayerOutput(
                results if out else None, together if out else None, a if pre else None, None, None, tiles.block_n,
                query_out,
            )  # fmt: skip
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
    query_out = empty(M, query_n) if query is not None else None
    b_k, b_v = (norm_in.wb[0], norm_in.wb[-1]) if norm_in is not None else (b[0], b[-1])
    grid_n = max(columns, triton.cdiv(query_n, tiles.block_n))
    launch(
        mlp_layer_forward_kernel,
        (triton.cdiv(M, tiles.block_m) * grid_n, streams + (query is not None)),
        tiles=tiles,
        flops=2 * M * K * (streams * N + query_n),
        steps=triton.cdiv(K, tiles.block_k),
        why=by.why,
        writes=("pre_ptr", "out_k_ptr", "out_v_ptr", "stats_ptr", "moments_out_ptr", "query_out_ptr"),
        x_k_ptr=x[0], x_v_ptr=x[-1], w_k_ptr=w[0], w_v_ptr=w[-1], b_k_ptr=b_k, b_v_ptr=b_v,
        wg_k_ptr=norm_in.wg[0] if norm_in else None, wg_v_ptr=norm_in.wg[-1] if norm_in else None,
        g_in_k_ptr=norm_in.gamma[0] if norm_in and norm_in.gamma else None,
        g_in_v_ptr=norm_in.gamma[-1] if norm_in and norm_in.gamma else None,
        alpha_k_ptr=alpha[0] if alpha else None, alpha_v_ptr=alpha[-1] if alpha else None,
        g_k_ptr=gamma[0] if gamma else None, g_v_ptr=gamma[-1] if gamma else None,
        residual_k_ptr=residual[0] if residual else None, residual_v_ptr=residual[-1] if residual else None,
        pre_ptr=pre_tensor, out_k_ptr=outs[0] if outs else None, out_v_ptr=outs[-1] if outs else None,
        moments_in_ptr=norm_in.moments if norm_in else None, stats_ptr=row_stats, moments_out_ptr=parts,
        query_w_ptr=query[0] if query else None, query_b_ptr=query[1] if query else None, query_out_ptr=query_out,
        seed_ptr=dropout.seed if dropout else None, layer_id=dropout.layer_id if dropout else 0,
        dropout=dropout.p if dropout else 0.0, multiplier_k=multiplier[0], multiplier_v=multiplier[-1],
        strength_ptr=strength, eps=EPS,
        M=M, N=N, K=K, QUERY_N=query_n,
        tiles_in=norm_in.moments.shape[1] if norm_in else 0, width_in=norm_in.width if norm_in else 1,
        stride_xk=x[0].stride(0), stride_xv=x[-1].stride(0),
        stride_rk=residual[0].stride(0) if residual else 0, stride_rv=residual[-1].stride(0) if residual else 0,
        ACT=act, NORM_IN=norm_in is not None, NORM_OUT=moments, RESIDUAL=residual is not None,
        DROPOUT=dropout is not None, PRELU=alpha is not None, **product(dtype), EVEN=K % tiles.block_k == 0,
    )  # fmt: skip
    return LayerOutput(outs, stacked, pre_tensor, row_stats, parts, tiles.block_n, query_out)
