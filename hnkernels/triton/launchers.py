"""One function per kernel: tensors in, tensors out; it allocates, chooses the tiles and launches.

Tensors are 2-D [M, width] with contiguous rows, one per stream, or stacked [streams, M, width] with K first. There are
two streams, or one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton._compat import INTERPRETED
from hnkernels.triton.launch import launch
from hnkernels.triton.layer_backward import hidden_gradient_kernel, input_gradient_kernel
from hnkernels.triton.layer_forward import mlp_layer_forward_kernel
from hnkernels.triton.norm_backward import normed_gradient_kernel, normed_weight_gradient_kernel
from hnkernels.triton.project import grouped_input_gradient_kernel, grouped_linear_kernel, linear_streams_kernel
from hnkernels.triton.rows import layer_output_backward_kernel, norm_forward_kernel, norm_vectors_kernel
from hnkernels.triton.tiling import Tiles, choose, normalising, splits, target_of
from hnkernels.triton.weight_gradient import sum_rows_kernel, weight_gradient_kernel

Streams = tuple[Tensor, ...]
"""The same thing for the K and the V stream; or one alone, where a single MLP runs."""

ROW_PROGRAMS = 256
"""At most so many programs sum the rows of a LayerNorm's gradient; each leaves one partial sum."""

EPS = 1e-5
"""LayerNorm's epsilon in every hypernetwork."""


class Dropout(NamedTuple):
    """Active dropout of one layer: probability, the tensor with the seed, the layer's number for the generator."""

    p: float
    seed: Tensor
    site: int


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


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products and statistics are added up in. float64 occurs in gradient checks only."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
    rider: tuple[Tensor, Tensor | None] | None = None,
    stats: bool = False,
) -> LayerOutput:
    """``mlp_layer_forward_kernel``: x [M, K], w [N, K], b [N] per stream → out [M, N] per stream, and what is asked.

    ``moments`` asks for those of a LayerNorm behind, ``gamma`` is its γ, unless the next launch is to see to it;
    ``norm_in`` is one in front, and ``stats`` asks for the mean and 1/σ of its rows, [streams, M, 2]; ``rider`` is
    (weight [R, K], bias [R]) of ``to_q``, whose product with x_k comes along.
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
        reads=[*x, *w, b_k, b_v, *(alpha or ()), *(gamma or ()), *(residual or ()), *(rider or ()),
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
        dropout=dropout.p if dropout else 0.0, multiplier_k=multiplier[0], multiplier_v=multiplier[-1], eps=EPS,
        M=M, N=N, K=K, RIDER_N=rider_n,
        tiles_in=norm_in.moments.shape[1] if norm_in else 0, width_in=norm_in.width if norm_in else 1,
        stride_xk=x[0].stride(0), stride_xv=x[-1].stride(0),
        stride_rk=residual[0].stride(0) if residual else 0, stride_rv=residual[-1].stride(0) if residual else 0,
        ACT=act, NORM_IN=norm_in is not None, NORM_OUT=moments, RESIDUAL=residual is not None,
        DROPOUT=dropout is not None, PRELU=alpha is not None, **_product(dtype), EVEN=K % tiles.block_k == 0,
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
        b_k_ptr=beta[0], b_v_ptr=beta[-1], wg_ptr=wg, wb_ptr=wb, N=N, K=K, ACC=_tl(acc), BLOCK_N=block, BLOCK_K=128,
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
    wb: Tensor | None = None,
) -> Streams:
    """``[residual + m·] dropout(LN(act(a [+ wb])))``. Shape: a [streams, M, N], wb [streams, N] → [M, N] per stream."""
    streams, M, N = a.shape
    outs = tuple(torch.empty(M, N, device=a.device, dtype=out_dtype) for _ in range(streams))
    launch(
        norm_forward_kernel,
        (triton.cdiv(M, _rows_at_once(N)), streams),
        reads=[a, wb, *gamma, *beta, *(alpha or ()), *(residual or ())],
        writes=outs,
        a_ptr=a, wb_ptr=wb, g_k_ptr=gamma[0], g_v_ptr=gamma[-1], b_k_ptr=beta[0], b_v_ptr=beta[-1],
        alpha_k_ptr=alpha[0] if alpha else None, alpha_v_ptr=alpha[-1] if alpha else None,
        residual_k_ptr=residual[0] if residual else None, residual_v_ptr=residual[-1] if residual else None,
        out_k_ptr=outs[0], out_v_ptr=outs[-1],
        seed_ptr=dropout.seed if dropout else None, site=dropout.site if dropout else 0,
        dropout=dropout.p if dropout else 0.0, multiplier_k=multiplier[0], multiplier_v=multiplier[-1], eps=EPS,
        M=M, N=N, stride_rk=residual[0].stride(0) if residual else 0,
        stride_rv=residual[-1].stride(0) if residual else 0,
        ACT=act, RESIDUAL=residual is not None, DROPOUT=dropout is not None, PRELU=alpha is not None,
        ACC=_tl(acc_dtype(a.dtype)), **_row_blocks(N),
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
        TRANSPOSED=transposed, **_product(dtype),
        EVEN=all(k % tiles.block_k == 0 for _, k in sizes) and hidden % tiles.block_k == 0
        and not (transposed and any(n % tiles.block_n for n, _ in sizes)),
    )  # fmt: skip
    return outs


def grouped_linear(x: Streams, groups: Groups, out: Tensor) -> None:
    """``x wᵀ + b`` for every projection of the groups, written behind one another into the flat ``out``."""
    M, K = x[0].shape
    tiles = groups.tiles
    launch(
        grouped_linear_kernel,
        (triton.cdiv(M, tiles.block_m) * groups.tile_table.shape[0],),
        tiles=tiles,
        flops=2 * M * K * sum(groups.widths),
        reads=[*x, *groups.weights, *groups.biases],
        writes=[out],
        x_k_ptr=x[0], x_v_ptr=x[-1], table_ptr=groups.table, tiles_ptr=groups.tile_table, out_ptr=out,
        M=M, K=K, stride_xk=x[0].stride(0), stride_xv=x[-1].stride(0),
        **_product(x[0].dtype), EVEN=K % tiles.block_k == 0, ALIGNED=all(n % 16 == 0 for n in groups.widths),
    )  # fmt: skip


def grouped_input_gradient(dp: list[Tensor], groups: Groups) -> Streams:
    """``Σ dp_g w_g`` over the projections of each stream. Shape: dp_g [M, N_g] → [M, K] per stream."""
    M, K = dp[0].shape[0], groups.weights[0].shape[1]
    dtype, device = dp[0].dtype, dp[0].device
    tiles = choose("backward", M, K, max(groups.widths), dtype, target_of(device))
    outs = (torch.empty(M, K, device=device, dtype=dtype), torch.empty(M, K, device=device, dtype=dtype))
    rows = [
        [d.data_ptr(), w.data_ptr(), n, s]
        for d, w, n, s in zip(dp, groups.weights, groups.widths, groups.streams, strict=True)
    ]
    launch(
        grouped_input_gradient_kernel,
        (triton.cdiv(M, tiles.block_m) * triton.cdiv(K, tiles.block_n), 2),
        tiles=tiles,
        flops=2 * M * K * sum(groups.widths),
        reads=[*dp, *groups.weights],
        writes=outs,
        table_ptr=torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True),
        dx_k_ptr=outs[0], dx_v_ptr=outs[-1], groups=len(rows), M=M, K=K, **_product(dtype),
        EVEN=K % tiles.block_n == 0 and all(n % tiles.block_k == 0 for n in groups.widths),
        ALIGNED=all(n % 16 == 0 for n in groups.widths),
    )  # fmt: skip
    return outs


class Groups(NamedTuple):
    """Projections w [N_g, K] of one context, as the grouped kernels want them."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    streams: Sequence[int]
    tiles: Tiles
    table: Tensor
    tile_table: Tensor

    @property
    def widths(self) -> list[int]:
        """N of every projection."""
        return [w.shape[0] for w in self.weights]


def groups(weights: Sequence[Tensor], biases: Sequence[Tensor | None], streams: Sequence[int], rows: int) -> Groups:
    """The projections with their tables: of stream 0 (x_k) or 1 (x_v) each, for products with so many rows."""
    device = weights[0].device
    widths = tuple(w.shape[0] for w in weights)
    tiles = choose("forward", rows, max(widths), weights[0].shape[1], weights[0].dtype, target_of(device))
    addresses = tuple((w.data_ptr(), 0 if b is None else b.data_ptr()) for w, b in zip(weights, biases, strict=True))
    tables = _tables(addresses, widths, tuple(streams), tiles.block_n, device)
    return Groups(weights, biases, streams, tiles, *tables)


@lru_cache(maxsize=64)
def _tables(
    addresses: tuple[tuple[int, int], ...],
    widths: tuple[int, ...],
    streams: tuple[int, ...],
    block_n: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The tables that the grouped kernels read. They hold nothing but these arguments, so keeping them is safe."""
    table, tile_table, first = [], [], 0
    for group, (address, width, stream) in enumerate(zip(addresses, widths, streams, strict=True)):
        table.append([*address, width, first, stream])
        tile_table += [[group, tile] for tile in range(triton.cdiv(width, block_n))]
        first += width
    return torch.tensor(table, device=device), torch.tensor(tile_table, dtype=torch.int32, device=device)


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
        ACT=act, FUSED=fused, DROPOUT=dropout is not None, **_product(dtype),
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
        ACC=_tl(acc_dtype(dtype)), **_row_blocks(N),
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
        M=M, N=N, K=K, tiles_in=dots.shape[1], ACT=act, **_product(dtype),
        EVEN=K % tiles.block_k == N % tiles.block_n == 0,
    )  # fmt: skip
    return out, normal, dots_out


def row_programs(M: int) -> int:
    """How many programs share M rows; it depends on M alone, so that sums come out the same every time."""
    return min(triton.cdiv(M, 32 if INTERPRETED else 4), ROW_PROGRAMS)


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
        M=M, D=D, K=K, Q=Q, SHARED=shared, **_product(dtype),
        EVEN=K % tiles.block_k == Q % tiles.block_k == D % tiles.block_n == 0,
    )  # fmt: skip
    return dx_k, dx_v


class WeightGradients:
    """Collects the weight and bias gradients of several linears, and adds up their parts in one launch at the end.

    Args:
        shapes: (N, K) of every linear, one for each of its streams.
        rows: M, the tokens that are summed over.
        dtype: of the weights.
        biases: whether there are bias gradients.
        normed: whether ``finish_normed`` will be called, which wants unrounded sums.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[tuple[int, int]]],
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        biases: bool = True,
        normed: bool = False,
    ):
        self.rows, self.shapes, self.biases = rows, shapes, biases
        self.offsets, end = self.layout(shapes, biases)
        target = target_of(device)
        self._tiles = [
            choose("gradient", rows, max(n for n, _ in streams), streams[0][1], dtype, target) for streams in shapes
        ]
        block = max(tiles.block_m for tiles in self._tiles)
        fewest = min(len(s) * self._programs(i, self._tiles[i]) for i, s in enumerate(shapes))
        count = splits(rows, fewest, block, target)
        self._per_split = max(triton.cdiv(triton.cdiv(rows, count), block), 1) * block
        self._splits = triton.cdiv(rows, self._per_split)
        self._flat = torch.empty(end, device=device, dtype=dtype)
        self._apart = self._splits > 1 or normed
        self._parts = self._flat[None]
        if self._apart:
            self._parts = torch.empty(max(self._splits, 1), end, device=device, dtype=acc_dtype(dtype))
        if rows == 0:
            self._parts.zero_()

    @staticmethod
    def layout(shapes: Sequence[Sequence[tuple[int, int]]], biases: bool = True) -> tuple[list[list[int]], int]:
        """Where the streams' dw, then their db, begin in the flat gradient, for every linear; and its length."""
        offsets, end = [], 0
        for streams in shapes:
            starts = []
            for size in (*(n * k for n, k in streams), *((n for n, _ in streams) if biases else ())):
                starts.append(end)
                end += size
            offsets.append(starts)
        return offsets, end

    def add(
        self,
        index: int,
        da: Streams,
        h: Streams,
        scale: tuple[float, ...] = (1.0, 1.0),
        act: str = "linear",
        stats: Tensor | None = None,
    ) -> None:
        """``scale · daᵀ h`` and ``scale · Σ da`` of linear ``index``. Shape: da [M, N], h [M, K] per stream.

        With ``stats`` [streams, M, 2] h are pre-activations, and ẑ = (act(h) − μ)/σ takes their place.
        """
        streams, tiles, starts = self.shapes[index], self._tiles[index], self.offsets[index]
        if stats is not None:
            tiles = normalising(tiles, target_of(da[0].device))
        end = self.offsets[index + 1][0] if index + 1 < len(self.offsets) else self._parts.shape[1]
        relative = [start - starts[0] for start in starts]
        bias_k, bias_v = (relative[len(streams)], relative[-1]) if self.biases else (0, 0)
        launch(
            weight_gradient_kernel,
            (self._programs(index, tiles), len(streams), self._splits),
            tiles=tiles,
            flops=2 * self.rows * sum(n * k for n, k in streams),
            reads=[*da, *h, stats],
            writes=[self._parts[:, starts[0] : end]],
            da_k_ptr=da[0], da_v_ptr=da[-1], h_k_ptr=h[0], h_v_ptr=h[-1], stats_ptr=stats,
            out_ptr=self._parts[:, starts[0] :],
            M=self.rows, N_k=streams[0][0], N_v=streams[-1][0], K=streams[0][1],
            rows_per_split=self._per_split, elements=self._parts.stride(0),
            weight_v=relative[len(streams) - 1], bias_k=bias_k, bias_v=bias_v, scale_k=scale[0], scale_v=scale[-1],
            stride_dk=da[0].stride(0), stride_dv=da[-1].stride(0), stride_hk=h[0].stride(0), stride_hv=h[-1].stride(0),
            ACT=act, BIAS=self.biases, **_product(da[0].dtype),
            EVEN=self.rows % tiles.block_m == 0
            and all(n % tiles.block_n == k % tiles.block_k == 0 for n, k in streams),
        )  # fmt: skip

    def total(self) -> Tensor:
        """All gradients behind one another, at ``offsets``."""
        if self._apart:
            sum_rows(self._parts, self._flat)
        return self._flat

    def finish_normed(
        self, index: int, w: Streams, gamma: Streams, beta: Streams, vectors: Tensor, stream_of_vectors: int
    ) -> None:
        """After ``total``: linear ``index`` got ẑ for h; this makes its dw, and dγ and dβ in ``vectors``, of that.

        Shape: w [N, K], gamma, beta [K] per stream; ``vectors`` is flat, from this LayerNorm on.
        """
        streams, starts = self.shapes[index], self.offsets[index]
        n, k = streams[0]
        relative = [start - starts[0] for start in starts]
        parts = self._parts[:, starts[0] : starts[-1] + n]
        block = 32
        launch(
            normed_weight_gradient_kernel,
            (triton.cdiv(k, block), len(streams)),
            flops=6 * n * k * len(streams),
            reads=[parts, *w, *gamma, *beta],
            writes=[self._flat[starts[0] : starts[-1] + n], vectors[: len(streams) * stream_of_vectors]],
            parts_ptr=parts, w_k_ptr=w[0], w_v_ptr=w[-1], g_k_ptr=gamma[0], g_v_ptr=gamma[-1],
            b_k_ptr=beta[0], b_v_ptr=beta[-1], dw_ptr=self._flat[starts[0] :], dg_ptr=vectors,
            splits=parts.shape[0], elements=parts.stride(0), N=n, K=k, weight_v=relative[len(streams) - 1],
            bias_k=relative[len(streams)], bias_v=relative[-1], stream_of_vectors=stream_of_vectors,
            ACC=_tl(self._parts.dtype), BLOCK_N=32, BLOCK_K=block,
        )  # fmt: skip

    def _programs(self, index: int, tiles: Tiles) -> int:
        streams = self.shapes[index]
        return triton.cdiv(max(n for n, _ in streams), tiles.block_n) * triton.cdiv(streams[0][1], tiles.block_k)


def sum_rows(parts: Tensor, out: Tensor) -> None:
    """``out = Σ parts`` over rows. Shape: parts [R, P], rows perhaps apart, out [P]. Zero where there are no rows."""
    R, P = parts.shape
    if R == 0:
        out.zero_()
        return
    block = 128
    launch(
        sum_rows_kernel,
        (triton.cdiv(P, block),),
        reads=[parts],
        writes=[out],
        parts_ptr=parts, out_ptr=out, R=R, P=P, stride=parts.stride(0), ACC=_tl(parts.dtype),
        BLOCK_R=min(16, triton.next_power_of_2(R)), BLOCK_P=block,
    )  # fmt: skip


def _product(dtype: torch.dtype) -> dict[str, Any]:
    # fp32 is fp32, as in PyTorch, unless the user allows TF32 there too.
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return {"ACC": _tl(acc_dtype(dtype)), "PRECISION": "tf32" if tf32 else "ieee"}


def _row_blocks(N: int) -> dict[str, Any]:
    columns = triton.next_power_of_2(N)
    return {"BLOCK_R": _rows_at_once(N), "BLOCK_N": columns, "num_warps": min(max(columns // 512, 4), 16)}


def _rows_at_once(N: int) -> int:
    # The interpreter's time goes by operations, not elements.
    return 32 if INTERPRETED else max(1, 1024 // triton.next_power_of_2(N))


def _tl(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32
