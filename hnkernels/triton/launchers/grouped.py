"""The projections of many layers over one context in one launch, and their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from hnkernels.triton.launch import launch
from hnkernels.triton.launchers.arguments import Streams, product
from hnkernels.triton.project import grouped_input_gradient_kernel, grouped_linear_kernel
from hnkernels.triton.tiling import Tiles, choose, target_of


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
        **product(x[0].dtype), EVEN=K % tiles.block_k == 0, ALIGNED=all(n % 16 == 0 for n in groups.widths),
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
        dx_k_ptr=outs[0], dx_v_ptr=outs[-1], groups=len(rows), M=M, K=K, **product(dtype),
        EVEN=K % tiles.block_n == 0 and all(n % tiles.block_k == 0 for n in groups.widths),
        ALIGNED=all(n % 16 == 0 for n in groups.widths),
    )  # fmt: skip
    return outs
