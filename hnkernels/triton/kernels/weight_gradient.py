"""Weight and bias gradients: a long sum over tokens, split into parts that are added in a fixed order. No atomics.

Where one part is enough, a product's epilogue writes the gradients themselves, even those after a LayerNorm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton import vendor
from hnkernels.triton._compat import add_columns, convert, dot
from hnkernels.triton.autotune import choose, runs
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.arguments import Streams, acc_dtype, product, tl_dtype
from hnkernels.triton.kernels.norm_backward import normed_tile, normed_weight_gradient_kernel
from hnkernels.triton.kernels.sums import sum_rows
from hnkernels.triton.kernels.tiles import halves, tile_of
from hnkernels.triton.launch import launch
from hnkernels.triton.route import Route, route
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import Tiles, fitting, row_tiles, splits


@triton.jit
def add_tokens(
    acc,  # [BLOCK_N, BLOCK_K]
    sums,  # [BLOCK_N, 16]
    da_tile,  # [BLOCK_N, BLOCK_M] pointers
    h_tile,  # [BLOCK_M, BLOCK_K] pointers
    count,
    stride_dm,
    stride_hm,
    n_mask,  # [BLOCK_N, 1]
    k_mask,  # [1, BLOCK_K]
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """``acc + daᵀ h`` and, with SUMS, ``sums + daᵀ 1`` over ``count`` tokens.

    Σ da is one more product, daᵀ with ones, because adding up rows in the loop costs more than a small dot.
    """
    steps = tl.arange(0, BLOCK_M)
    if SUMS:
        ones = tl.full((BLOCK_M, 16), 1.0, da_tile.dtype.element_ty)
    for step in range(0, count, BLOCK_M):
        if EVEN:
            da = tl.load(da_tile)
            h = tl.load(h_tile)
        else:
            inside = steps < count - step
            da = tl.load(da_tile, mask=n_mask & inside[None, :], other=0.0)
            h = tl.load(h_tile, mask=k_mask & inside[:, None], other=0.0)
        acc = dot(da, h.to(da.dtype), acc, PRECISION)
        if SUMS:
            sums = add_columns(da, ones, sums, PRECISION)
        da_tile += BLOCK_M * tl.cast(stride_dm, tl.int64)
        h_tile += BLOCK_M * tl.cast(stride_hm, tl.int64)
    return acc, sums


@triton.jit(do_not_specialize=["M"])
def weight_gradient_kernel(
    da_k_ptr,  # [M, N]
    da_v_ptr,
    h_k_ptr,  # [M, K]; after a LayerNorm ẑ
    h_v_ptr,
    out_ptr,  # [splits, elements]: this layer's part begins here
    vectors_ptr,  # [tiles of N, streams, 2, K]: dγ and dβ of the LayerNorm in front, which is finished here; or None
    w_k_ptr,  # [N, K]: the weight, with vectors
    w_v_ptr,
    g_k_ptr,  # [K]: γ
    g_v_ptr,
    b_k_ptr,  # [K]: β
    b_v_ptr,
    M,
    N_k,
    N_v,
    K,
    rows_per_split,
    elements,
    weight_v,  # elements from here to where the V stream's dw goes; the K stream's is first
    bias_k,  # and to the db of both; with BIAS
    bias_v,
    scale_k,
    scale_v,
    stride_dk,
    stride_dv,
    stride_hk,
    stride_hv,
    BIAS: tl.constexpr,
    SUMS_EVERYWHERE: tl.constexpr,  # db is made beside all of dw: every tile needs it, or there are no two loops
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,  # M, N and K are multiples of their blocks
    BLOCK_M: tl.constexpr,  # tokens of a step
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``dw = scale · daᵀ h`` [N, K] and ``db = scale · Σ da`` [N] over the tokens of one split.

    db is made beside the first columns of dw only. With vectors dw is what ``normed_tile`` makes of dw and db: h is ẑ,
    and all tokens are in the one split.
    """
    wait_for_launches_before()
    stream = tl.program_id(1)
    split = tl.program_id(2)
    da_ptr, h_ptr, N, stride_dm, stride_hm, scale = da_k_ptr, h_k_ptr, N_k, stride_dk, stride_hk, scale_k
    weight_at, bias_at = 0 * weight_v, bias_k
    if stream == 1:
        da_ptr, h_ptr, N, stride_dm, stride_hm, scale = da_v_ptr, h_v_ptr, N_v, stride_dv, stride_hv, scale_v
        weight_at, bias_at = weight_v, bias_v
    if tl.program_id(0) >= tl.cdiv(N, BLOCK_N) * tl.cdiv(K, BLOCK_K):
        return
    tile_n, tile_k = tile_of(tl.program_id(0), N, K, BLOCK_N, BLOCK_K, GROUP_M)
    cols_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    cols_k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    first = split.to(tl.int64) * rows_per_split
    count = tl.minimum(M - first, rows_per_split).to(tl.int32)
    steps = tl.arange(0, BLOCK_M)
    rows = first + steps
    da_tile = da_ptr + rows[None, :] * stride_dm + cols_n[:, None]  # [BLOCK_N, BLOCK_M]
    h_tile = h_ptr + rows[:, None] * stride_hm + cols_k[None, :]  # [BLOCK_M, BLOCK_K]
    n_mask = (cols_n < N)[:, None]
    k_mask = (cols_k < K)[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    sums = tl.zeros((BLOCK_N, 16), ACC)
    if SUMS_EVERYWHERE:
        acc, sums = add_tokens(
            acc, sums, da_tile, h_tile, count, stride_dm, stride_hm, n_mask, k_mask, True, PRECISION, EVEN, BLOCK_M
        )  # fmt: skip
    elif BIAS:
        if tile_k == 0:
            acc, sums = add_tokens(
                acc, sums, da_tile, h_tile, count, stride_dm, stride_hm, n_mask, k_mask, True, PRECISION, EVEN, BLOCK_M
            )  # fmt: skip
        else:
            acc, sums = add_tokens(
                acc, sums, da_tile, h_tile, count, stride_dm, stride_hm, n_mask, k_mask, False, PRECISION, EVEN, BLOCK_M
            )  # fmt: skip
    else:
        acc, sums = add_tokens(
            acc, sums, da_tile, h_tile, count, stride_dm, stride_hm, n_mask, k_mask, False, PRECISION, EVEN, BLOCK_M
        )  # fmt: skip
    out = out_ptr + split.to(tl.int64) * elements
    dtype = out_ptr.dtype.element_ty
    mask = n_mask & k_mask
    at = cols_n[:, None].to(tl.int64) * K + cols_k[None, :]
    dw = scale * acc
    if BIAS:
        db = scale * tl.sum(sums, axis=1) * (1.0 / 16)  # 16 equal columns: exact
        if tile_k == 0:
            tl.store(out + bias_at + cols_n, convert(db, dtype), mask=cols_n < N)
        if vectors_ptr is not None:
            w_ptr, g_ptr, b_ptr = w_k_ptr, g_k_ptr, b_k_ptr
            if stream == 1:
                w_ptr, g_ptr, b_ptr = w_v_ptr, g_v_ptr, b_v_ptr
            vectors = vectors_ptr + (tile_n * tl.num_programs(1) + stream).to(tl.int64) * 2 * K
            left, right = halves(dw, BLOCK_N, BLOCK_K)
            half: tl.constexpr = BLOCK_K // 2
            cols = tile_k * BLOCK_K + tl.arange(0, half)
            out += weight_at
            _finish(left, db, cols_n, cols, w_ptr, g_ptr, b_ptr, vectors, out, N, K)
            _finish(right, db, cols_n, cols + half, w_ptr, g_ptr, b_ptr, vectors, out, N, K)
            return
    tl.store(out + weight_at + at, convert(dw, dtype), mask=mask)


@triton.jit
def _finish(
    u,  # [ROWS, COLS]: of U
    db,  # [ROWS]
    rows,
    cols,
    w_ptr,  # [N, K], and so on: see ``normed_tile``
    g_ptr,
    b_ptr,
    vectors_ptr,
    out_ptr,  # [N, K]
    N,
    K,
):
    """Stores a part of dw of a linear after a LayerNorm."""
    mask = (rows < N)[:, None] & (cols < K)[None, :]
    at = rows[:, None].to(tl.int64) * K + cols[None, :]
    w = tl.load(w_ptr + at, mask=mask, other=0.0)
    dw = normed_tile(u, db, w, g_ptr, b_ptr, vectors_ptr, cols, K)
    tl.store(out_ptr + at, convert(dw, out_ptr.dtype.element_ty), mask=mask)


class NormInFront(NamedTuple):
    """The LayerNorm in front of a linear whose weight gradient finishes its gradients, and the linear's weight.

    Shape: w [N, K], gamma, beta [K] per stream.
    """

    w: Streams
    gamma: Streams
    beta: Streams


class WeightGradients:
    """Collects the weight and bias gradients of several linears, and adds up their parts in one launch at the end.

    Args:
        shapes: (N, K) of every linear, one for each of its streams.
        rows: M, the tokens that are summed over.
        dtype: of the weights.
        biases: whether there are bias gradients.
        normed: the linears that get ẑ for h, and finish the gradients of the LayerNorm in front of them.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[tuple[int, int]]],
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        biases: bool = True,
        normed: Collection[int] = (),
    ):
        self.rows, self.shapes, self.biases = rows, shapes, biases
        self.offsets, end = self.layout(shapes, biases)
        self._dtype, self._target = dtype, target_of(device)
        self._tiles = [self._choose("gradient", streams) for streams in shapes]
        self._routes = [Route(False) if i in normed else self._route(i) for i in range(len(shapes))]
        self._normed, self._flat = normed, torch.empty(end, device=device, dtype=dtype)
        self._per_split, self._splits = self._cut()
        self._sums: list[tuple[Tensor, Tensor]] = []  # parts of bias gradients, and where they go
        self._acc = acc_dtype(dtype)
        self._parts = self._flat[None]
        if self._splits > 1:
            self._parts = torch.empty(self._splits, end, device=device, dtype=self._acc)
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
        norm: NormInFront | None = None,
        bias: Tensor | None = None,
    ) -> Tensor | None:
        """``scale · daᵀ h`` and ``scale · Σ da`` of linear ``index``. Shape: da [M, N], h [M, K] per stream.

        With ``norm``, which those of ``normed`` have, h is ẑ, and the gradients of γ and β come back in parts
        [parts, streams · 2 · K], whose sum over the parts is dγ, then dβ, of each stream. ``bias`` [parts, streams · N]
        are parts of Σ da, unscaled, for those that are ``by_vendor``.
        """
        streams, tiles, starts = self.shapes[index], self._tiles[index], self.offsets[index]
        if self._routes[index].vendor:
            self._add_by_vendor(index, da, h, scale, bias)
            return None
        here = norm is not None and self._splits == 1
        if here:  # its epilogue takes registers
            tiles = self._choose("normalising gradient", streams)
        vectors = self._vectors(streams, tiles.block_n) if here else None
        launch(
            weight_gradient_kernel,
            (self._programs(index, tiles), len(streams), self._splits),
            tiles=tiles,
            flops=2 * self.rows * sum(n * k for n, k in streams),
            steps=triton.cdiv(self._per_split, tiles.block_m),
            why=self._routes[index].why,
            writes=("out_ptr", "vectors_ptr"),
            da_k_ptr=da[0], da_v_ptr=da[-1], h_k_ptr=h[0], h_v_ptr=h[-1],
            out_ptr=self._parts[:, starts[0] : self._end(index)],
            vectors_ptr=vectors, **_norm_arguments(norm if here else None),
            M=self.rows, N_k=streams[0][0], N_v=streams[-1][0], K=streams[0][1],
            rows_per_split=self._per_split, elements=self._parts.stride(0), **self._where(index),
            scale_k=scale[0], scale_v=scale[-1],
            stride_dk=da[0].stride(0), stride_dv=da[-1].stride(0), stride_hk=h[0].stride(0), stride_hv=h[-1].stride(0),
            BIAS=self.biases, SUMS_EVERYWHERE=self.biases and (here or self._target.scarce_registers),
            **product(da[0].dtype),
            EVEN=self.rows % tiles.block_m == 0
            and all(n % tiles.block_n == k % tiles.block_k == 0 for n, k in streams),
        )  # fmt: skip
        return self._finish(index, norm) if norm is not None and vectors is None else vectors

    def total(self, *more: tuple[Tensor, Tensor]) -> Tensor:
        """All gradients one after another, at ``offsets``. The sums of ``more``, (parts, out), are made on the way."""
        sums = [*self._sums, *more]
        if self._splits > 1:
            apart = (i for i, by in enumerate(self._routes) if not by.vendor and i not in self._normed)
            ranges = neighbours((self.offsets[i][0], self._end(i)) for i in apart)
            sums = [(self._parts[:, first:end], self._flat[first:end]) for first, end in ranges] + sums
        sum_rows(*sums)
        return self._flat

    def _route(self, index: int) -> Route:
        streams, m = self.shapes[index], self.rows
        (n, k), tiles = (max(n for n, _ in streams), streams[0][1]), self._tiles[index]
        products = [(n, k, m) for n, k in streams] * (2 if len(streams) == 1 else 1)
        sums = 2 * self.biases
        return route("gradient", m, n, k, self._dtype, self._target, tiles, products, sums * m * n, launches=sums)

    def _cut(self) -> tuple[int, int]:
        """Rows of a split, and how many there are: as many for all linears whose gradients our kernel makes."""
        rows, ours = self.rows, [i for i, by in enumerate(self._routes) if not by.vendor]
        if not ours:
            return max(rows, 1), min(rows, 1)
        block = max(self._tiles[i].block_m for i in ours)
        fewest = min(len(self.shapes[i]) * self._programs(i, self._tiles[i]) for i in ours)
        fit = min(fitting("gradient", self._tiles[i], self._target) for i in ours)
        # All copies in fp32, written and read, are to be at most a quarter of what the sums read.
        sizes = [(max(n for n, _ in self.shapes[i]), self.shapes[i][0][1]) for i in ours]
        affordable = min(rows * (n + k) * self._dtype.itemsize // max(4 * 8 * n * k, 1) for n, k in sizes)
        count = splits(rows, fewest, block, self._target, fit, affordable)
        per_split = max(triton.cdiv(triton.cdiv(rows, count), block), 1) * block
        return per_split, triton.cdiv(rows, per_split)

    def by_vendor(self, index: int) -> bool:
        """Whether the vendor's library computes this linear's, to whom Σ da is another launch."""
        return self._routes[index].vendor

    def _add_by_vendor(
        self, index: int, da: Streams, h: Streams, scale: tuple[float, ...], bias: Tensor | None
    ) -> None:
        starts, why, streams = self.offsets[index], self._routes[index].why, len(da)
        if bias is not None:
            self._sums.append((bias, self._flat[starts[streams] : starts[streams] + bias.shape[1]]))
        both, rows = vendor.together(da), vendor.together(h)
        if both is not None and rows is not None and scale[0] == scale[-1]:
            n, k = self.shapes[index][0]
            out = self._flat[starts[0] :][: 2 * n * k].view(2, n, k)
            vendor.multiply(out, both.transpose(1, 2), rows, scale=scale[0], why=why)
        else:
            for s, (n, k) in enumerate(self.shapes[index]):
                out = self._flat[starts[s] : starts[s] + n * k].view(n, k)
                vendor.multiply(out, da[s].t(), h[s], scale=scale[s], why=why)
        if self.biases and bias is None:
            for s, (n, _) in enumerate(self.shapes[index]):
                vendor.sum_columns(self._flat[starts[streams + s] :][:n], da[s], scale[s])

    def _finish(self, index: int, norm: NormInFront) -> Tensor:
        """Adds up the parts of a linear after a LayerNorm, and makes of U what ``add`` returns."""
        streams, starts = self.shapes[index], self.offsets[index]
        n, k = streams[0]
        block = row_tiles("normed weight gradient", n, k, self._target)
        vectors = self._vectors(streams, block.rows)
        launch(
            normed_weight_gradient_kernel,
            (triton.cdiv(n, block.rows) * triton.cdiv(k, block.columns) if self._splits else 0, len(streams)),
            flops=6 * n * k * len(streams),
            steps=self._splits,
            writes=("out_ptr", "vectors_ptr"),
            parts_ptr=self._parts[:, starts[0] : self._end(index)], **_norm_arguments(norm),
            out_ptr=self._flat[starts[0] : self._end(index)], vectors_ptr=vectors,
            splits=self._splits, elements=self._parts.stride(0), N=n, K=k, **self._where(index),
            ACC=tl_dtype(self._acc), BLOCK_N=block.rows, BLOCK_K=block.columns, num_warps=block.warps,
        )  # fmt: skip
        return vectors

    def _vectors(self, streams: Sequence[tuple[int, int]], block_n: int) -> Tensor:
        n, k = streams[0]
        tiles = triton.cdiv(n, block_n) if self._splits else 0
        return torch.empty(tiles, len(streams) * 2 * k, device=self._flat.device, dtype=self._acc)

    def _end(self, index: int) -> int:
        return self.offsets[index + 1][0] if index + 1 < len(self.offsets) else self._flat.numel()

    def _where(self, index: int) -> dict[str, Any]:
        """Elements from where a linear begins to dw of the V stream and to db of both."""
        streams = len(self.shapes[index])
        relative = [start - self.offsets[index][0] for start in self.offsets[index]]
        bias_k, bias_v = (relative[streams], relative[-1]) if self.biases else (0, 0)
        return {"weight_v": relative[streams - 1], "bias_k": bias_k, "bias_v": bias_v}

    def _choose(self, kind: str, streams: Sequence[tuple[int, int]]) -> Tiles:
        n, k = max(n for n, _ in streams), streams[0][1]
        return choose(kind, self.rows, n, k, self._dtype, self._target)

    def _programs(self, index: int, tiles: Tiles) -> int:
        streams = self.shapes[index]
        return triton.cdiv(max(n for n, _ in streams), tiles.block_n) * triton.cdiv(streams[0][1], tiles.block_k)


def _norm_arguments(norm: NormInFront | None) -> dict[str, Any]:
    if norm is None:
        return dict.fromkeys(("w_k_ptr", "w_v_ptr", "g_k_ptr", "g_v_ptr", "b_k_ptr", "b_v_ptr"))
    w, gamma, beta = norm
    return {
        "w_k_ptr": w[0], "w_v_ptr": w[-1], "g_k_ptr": gamma[0], "g_v_ptr": gamma[-1],
        "b_k_ptr": beta[0], "b_v_ptr": beta[-1],
    }  # fmt: skip


def neighbours(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges, (first, end) in order, with those that touch made one."""
    joined: list[tuple[int, int]] = []
    for first, end in ranges:
        if joined and joined[-1][1] == first:
            first = joined.pop()[0]
        joined.append((first, end))
    return joined


@runs("gradient")
def _gradient(da: Tensor, h: Tensor) -> None:
    gradients = WeightGradients([[(da.shape[1], h.shape[1])] * 2], da.shape[0], da.dtype, da.device)
    gradients.add(0, (da, da), (h, h))
    gradients.total()
