"""The projections of many layers over one context in one launch, and their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton._compat import convert
from hnkernels.triton.autotune import choose
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.arguments import Streams, acc_dtype, product, table_on
from hnkernels.triton.kernels.sums import sum_rows
from hnkernels.triton.kernels.tiles import multiply, tile_of
from hnkernels.triton.launch import launch
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import MOST_SPLITS, Tiles


@triton.jit(do_not_specialize=["M"])
def grouped_linear_kernel(
    x_k_ptr,  # [M, K]
    x_v_ptr,  # [M, K]
    table_ptr,  # [groups, 5] int64: addresses of w [N, K] and b [N] (0: none), N, first column, stream
    tiles_ptr,  # [tiles of columns, 2] int32: group, tile within it
    out_ptr,  # flat: the results [M, N] of the groups one after another
    M,
    K,
    stride_xk,
    stride_xv,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    ALIGNED: tl.constexpr,  # every N is a multiple of 16
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``out_g = x wᵀ_g + b_g`` for many projections of one context, each of the K or the V stream."""
    wait_for_launches_before()
    dtype = x_k_ptr.dtype.element_ty
    tiles_n = tl.num_programs(0) // tl.cdiv(M, BLOCK_M)
    tile_m, tile = tile_of(tl.program_id(0), M, tiles_n * BLOCK_N, BLOCK_M, BLOCK_N, GROUP_M)
    row = table_ptr + tl.load(tiles_ptr + 2 * tile) * 5
    # Every weight begins at a multiple of 16 bytes; the launcher has looked.
    w_ptr = tl.multiple_of(tl.load(row).to(tl.pointer_type(dtype)), 16)
    bias = tl.load(row + 1)
    N = tl.load(row + 2).to(tl.int32)
    first = tl.load(row + 3)
    if ALIGNED:
        N = tl.multiple_of(N, 16)
        first = tl.multiple_of(first, 16)
    x_ptr, stride_xm = x_k_ptr, stride_xk
    if tl.load(row + 4) == 1:
        x_ptr, stride_xm = x_v_ptr, stride_xv
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.load(tiles_ptr + 2 * tile + 1) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    acc = multiply(acc, x_ptr, w_ptr, rows, cols, M, N, K, stride_xm, K, False, BLOCK_K, EVEN, PRECISION)
    if bias != 0:
        acc += tl.load(bias.to(tl.pointer_type(dtype)) + cols, mask=cols < N, other=0.0).to(ACC)[None, :]
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    at = out_ptr + first * M + rows[:, None] * N + cols[None, :]
    tl.store(at, convert(acc, out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["groups", "split_groups", "M"])
def grouped_input_gradient_kernel(
    table_ptr,  # [groups, 4] int64: addresses of dp [M, N] and w [N, K], N, stream
    dp_0_ptr,  # the first dp, for its dtype
    dx_k_ptr,  # [M, K]; with SPLIT its fp32 parts, [splits, M, K]
    dx_v_ptr,
    groups,
    split_groups,  # with SPLIT: those of one split
    M,
    K,
    SPLIT: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,  # every N is a multiple of BLOCK_K, and K of BLOCK_N
    ALIGNED: tl.constexpr,  # every N is a multiple of 16
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``dx_s = Σ dp_g w_g`` over the groups g of stream s, in the order of the table; with SPLIT parts of it."""
    wait_for_launches_before()
    stream = tl.program_id(1)
    dtype = dp_0_ptr.dtype.element_ty
    dx_ptr = dx_k_ptr
    if stream == 1:
        dx_ptr = dx_v_ptr
    tile_m, tile_n = tile_of(tl.program_id(0), M, K, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    first, last = 0, groups
    if SPLIT:
        first = tl.program_id(2) * split_groups
        last = tl.minimum(first + split_groups, groups)
        dx_ptr += tl.program_id(2) * (tl.cast(M, tl.int64) * K)
    for group in range(first, last):
        row = table_ptr + group * 4
        if tl.load(row + 3) == stream:
            dp_ptr = tl.multiple_of(tl.load(row).to(tl.pointer_type(dtype)), 16)
            w_ptr = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(dtype)), 16)
            N = tl.load(row + 2).to(tl.int32)
            if ALIGNED:
                N = tl.multiple_of(N, 16)
            acc = multiply(acc, dp_ptr, w_ptr, rows, cols, M, K, N, N, K, True, BLOCK_K, EVEN, PRECISION)
    mask = (rows < M)[:, None] & (cols < K)[None, :]
    tl.store(dx_ptr + rows[:, None] * K + cols[None, :], convert(acc, dx_ptr.dtype.element_ty), mask=mask)


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
    tiles = choose("linear", rows, max(widths), weights[0].shape[1], weights[0].dtype, target_of(device))
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
    return table_on(device, table), table_on(device, tile_table, torch.int32)


def grouped_linear(x: Streams, groups: Groups, out: Tensor) -> None:
    """``x wᵀ + b`` for every projection of the groups, written one after another into the flat ``out``."""
    M, K = x[0].shape
    tiles = groups.tiles
    launch(
        grouped_linear_kernel,
        (triton.cdiv(M, tiles.block_m) * groups.tile_table.shape[0],),
        tiles=tiles,
        flops=2 * M * K * sum(groups.widths),
        steps=triton.cdiv(K, tiles.block_k),
        writes=("out_ptr",),
        addressed=[*groups.weights, *groups.biases],
        x_k_ptr=x[0], x_v_ptr=x[-1], table_ptr=groups.table, tiles_ptr=groups.tile_table, out_ptr=out,
        M=M, K=K, stride_xk=x[0].stride(0), stride_xv=x[-1].stride(0),
        **product(x[0].dtype), EVEN=K % tiles.block_k == 0, ALIGNED=all(n % 16 == 0 for n in groups.widths),
    )  # fmt: skip


def grouped_input_gradient(dp: list[Tensor], groups: Groups) -> Streams:
    """``Σ dp_g w_g`` over the projections of each stream. Shape: dp_g [M, N_g] → [M, K] per stream."""
    M, K = dp[0].shape[0], groups.weights[0].shape[1]
    dtype, device = dp[0].dtype, dp[0].device
    depth = sum(groups.widths) // 2  # of a stream
    tiles = choose("backward", M, K, depth, dtype, target_of(device), splits=MOST_SPLITS)
    outs = (torch.empty(M, K, device=device, dtype=dtype), torch.empty(M, K, device=device, dtype=dtype))
    split_groups, splits = tiles.parts(len(groups.widths))
    written: Streams = outs
    if splits > 1:
        written = tuple(torch.empty(splits, M * K, device=device, dtype=acc_dtype(dtype)) for _ in outs)
    rows = [
        [d.data_ptr(), w.data_ptr(), n, s]
        for d, w, n, s in zip(dp, groups.weights, groups.widths, groups.streams, strict=True)
    ]
    launch(
        grouped_input_gradient_kernel,
        (triton.cdiv(M, tiles.block_m) * triton.cdiv(K, tiles.block_n), 2, splits),
        tiles=tiles,
        flops=2 * M * K * sum(groups.widths),
        steps=triton.cdiv(depth, tiles.block_k * splits),
        writes=("dx_k_ptr", "dx_v_ptr"),
        addressed=[*dp, *groups.weights],
        table_ptr=table_on(device, rows), dp_0_ptr=dp[0],
        dx_k_ptr=written[0], dx_v_ptr=written[-1], groups=len(rows), split_groups=split_groups, M=M, K=K,
        SPLIT=splits > 1, **product(dtype),
        EVEN=K % tiles.block_n == 0 and all(n % tiles.block_k == 0 for n in groups.widths),
        ALIGNED=all(n % 16 == 0 for n in groups.widths),
    )  # fmt: skip
    if splits > 1:
        sum_rows(*((parts, out.view(-1)) for parts, out in zip(written, outs, strict=True)))
    return outs
