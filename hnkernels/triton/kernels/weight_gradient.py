"""Weight and bias gradients: a long sum over tokens, split into parts that are added in a fixed order. No atomics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton._compat import add_columns, convert, dot
from hnkernels.triton.autotune import choose, runs
from hnkernels.triton.kernels.activations import activate
from hnkernels.triton.kernels.arguments import Streams, acc_dtype, product, tl_dtype
from hnkernels.triton.kernels.norm_backward import normed_weight_gradient_kernel
from hnkernels.triton.kernels.tiles import tile_of
from hnkernels.triton.launch import launch
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import Tiles, row_tiles, splits


@triton.jit(do_not_specialize=["M"])
def weight_gradient_kernel(
    da_k_ptr,  # [M, N]
    da_v_ptr,
    h_k_ptr,  # [M, K]; with stats the pre-activations of a layer with LayerNorm, which ẑ is made of
    h_v_ptr,
    stats_ptr,  # [2, M, 2]: μ and 1/σ of its rows, or None
    out_ptr,  # [splits, elements]: this layer's part begins here
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
    ACT: tl.constexpr,
    BIAS: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,  # M, N and K are multiples of their blocks
    BLOCK_M: tl.constexpr,  # tokens of a step
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``dw = scale · daᵀ h`` [N, K] and ``db = scale · Σ da`` [N] over the tokens of one split.

    db is one more product, daᵀ with ones, because adding up rows in the loop costs more than a small dot.
    """
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
    if BIAS:
        ones = tl.full((BLOCK_M, 16), 1.0, da_ptr.dtype.element_ty)
        sums = tl.zeros((BLOCK_N, 16), ACC)
    for step in range(0, count, BLOCK_M):
        if EVEN:
            da = tl.load(da_tile)
            h = tl.load(h_tile)
        else:
            inside = steps < count - step
            da = tl.load(da_tile, mask=n_mask & inside[None, :], other=0.0)
            h = tl.load(h_tile, mask=k_mask & inside[:, None], other=0.0)
        if stats_ptr is not None:
            inside = steps < count - step
            stats = stats_ptr + (stream * tl.cast(M, tl.int64) + first + step + steps) * 2
            mean = tl.load(stats, mask=inside, other=0.0)
            rstd = tl.load(stats + 1, mask=inside, other=0.0)
            normal = (activate(h.to(ACC), 0.0, ACT) - mean[:, None]) * rstd[:, None]
            h = convert(normal, da.dtype)
        acc = dot(da, h.to(da.dtype), acc, PRECISION)
        if BIAS:
            sums = add_columns(da, ones, sums, PRECISION)
        da_tile += BLOCK_M * tl.cast(stride_dm, tl.int64)
        h_tile += BLOCK_M * tl.cast(stride_hm, tl.int64)
    out = out_ptr + split.to(tl.int64) * elements
    dtype = out_ptr.dtype.element_ty
    at = out + weight_at + cols_n[:, None].to(tl.int64) * K + cols_k[None, :]
    tl.store(at, convert(scale * acc, dtype), mask=n_mask & k_mask)
    if BIAS:
        if tile_k == 0:
            db = tl.sum(sums, axis=1) * (1.0 / 16)  # 16 equal columns: exact
            tl.store(out + bias_at + cols_n, convert(scale * db, dtype), mask=cols_n < N)


@triton.jit(do_not_specialize=["R"])
def sum_rows_kernel(
    parts_ptr,  # [R, P] fp32, rows ``stride`` apart
    out_ptr,  # [P]
    R,
    P,
    stride,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """``out = Σ parts`` over the rows, in a fixed order."""
    cols = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    steps = tl.arange(0, BLOCK_R)
    acc = tl.zeros((BLOCK_P,), ACC)
    for r in range(0, R, BLOCK_R):
        mask = (steps < R - r)[:, None] & (cols < P)[None, :]
        acc += tl.sum(
            tl.load(parts_ptr + (r + steps)[:, None].to(tl.int64) * stride + cols[None, :], mask=mask, other=0.0), 0
        )
    tl.store(out_ptr + cols, convert(acc, out_ptr.dtype.element_ty), mask=cols < P)


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
        self._dtype, self._target = dtype, target_of(device)
        self._tiles = [self._choose("gradient", streams) for streams in shapes]
        block = max(tiles.block_m for tiles in self._tiles)
        fewest = min(len(s) * self._programs(i, self._tiles[i]) for i, s in enumerate(shapes))
        count = splits(rows, fewest, block, self._target)
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
            tiles = self._choose("normalising gradient", streams)
        end = self.offsets[index + 1][0] if index + 1 < len(self.offsets) else self._parts.shape[1]
        relative = [start - starts[0] for start in starts]
        bias_k, bias_v = (relative[len(streams)], relative[-1]) if self.biases else (0, 0)
        launch(
            weight_gradient_kernel,
            (self._programs(index, tiles), len(streams), self._splits),
            tiles=tiles,
            flops=2 * self.rows * sum(n * k for n, k in streams),
            writes=("out_ptr",),
            da_k_ptr=da[0], da_v_ptr=da[-1], h_k_ptr=h[0], h_v_ptr=h[-1], stats_ptr=stats,
            out_ptr=self._parts[:, starts[0] : end],
            M=self.rows, N_k=streams[0][0], N_v=streams[-1][0], K=streams[0][1],
            rows_per_split=self._per_split, elements=self._parts.stride(0),
            weight_v=relative[len(streams) - 1], bias_k=bias_k, bias_v=bias_v, scale_k=scale[0], scale_v=scale[-1],
            stride_dk=da[0].stride(0), stride_dv=da[-1].stride(0), stride_hk=h[0].stride(0), stride_hv=h[-1].stride(0),
            ACT=act, BIAS=self.biases, **product(da[0].dtype),
            EVEN=self.rows % tiles.block_m == 0
            and all(n % tiles.block_n == k % tiles.block_k == 0 for n, k in streams),
        )  # fmt: skip

    def total(self) -> Tensor:
        """All gradients one after another, at ``offsets``."""
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
        block = row_tiles("normed weight gradient", n, k, self._target)
        launch(
            normed_weight_gradient_kernel,
            (triton.cdiv(k, block.columns), len(streams)),
            flops=6 * n * k * len(streams),
            writes=("dw_ptr", "dg_ptr"),
            parts_ptr=parts, w_k_ptr=w[0], w_v_ptr=w[-1], g_k_ptr=gamma[0], g_v_ptr=gamma[-1],
            b_k_ptr=beta[0], b_v_ptr=beta[-1], dw_ptr=self._flat[starts[0] : starts[len(streams)]],
            dg_ptr=vectors[: len(streams) * stream_of_vectors],
            splits=parts.shape[0], elements=parts.stride(0), N=n, K=k, weight_v=relative[len(streams) - 1],
            bias_k=relative[len(streams)], bias_v=relative[-1], stream_of_vectors=stream_of_vectors,
            ACC=tl_dtype(self._parts.dtype), BLOCK_N=block.rows, BLOCK_K=block.columns, num_warps=block.warps,
        )  # fmt: skip

    def _choose(self, kind: str, streams: Sequence[tuple[int, int]]) -> Tiles:
        n, k = max(n for n, _ in streams), streams[0][1]
        return choose(kind, self.rows, n, k, self._dtype, self._target)

    def _programs(self, index: int, tiles: Tiles) -> int:
        streams = self.shapes[index]
        return triton.cdiv(max(n for n, _ in streams), tiles.block_n) * triton.cdiv(streams[0][1], tiles.block_k)


def sum_rows(parts: Tensor, out: Tensor) -> None:
    """``out = Σ parts`` over rows. Shape: parts [R, P], rows perhaps apart, out [P]. Zero where there are no rows."""
    R, P = parts.shape
    if R == 0:
        out.zero_()
        return
    block = row_tiles("sum", R, P, target_of(out.device))
    launch(
        sum_rows_kernel,
        (triton.cdiv(P, block.columns),),
        writes=("out_ptr",),
        parts_ptr=parts, out_ptr=out, R=R, P=P, stride=parts.stride(0), ACC=tl_dtype(parts.dtype),
        BLOCK_R=block.rows, BLOCK_P=block.columns, num_warps=block.warps,
    )  # fmt: skip


@runs("gradient")
def _gradient(da: Tensor, h: Tensor) -> None:
    gradients = WeightGradients([[(da.shape[1], h.shape[1])] * 2], da.shape[0], da.dtype, da.device)
    gradients.add(0, (da, da), (h, h))
    gradients.total()
