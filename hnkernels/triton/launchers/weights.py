"""The gradients of weights, biases, and LayerNorm's vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from hnkernels.triton._compat import INTERPRETED
from hnkernels.triton.launch import launch
from hnkernels.triton.launchers.arguments import Streams, acc_dtype, product, tl_dtype
from hnkernels.triton.norm_backward import normed_weight_gradient_kernel
from hnkernels.triton.tiling import Tiles, choose, normalising, splits, target_of
from hnkernels.triton.weight_gradient import sum_rows_kernel, weight_gradient_kernel


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
            ACT=act, BIAS=self.biases, **product(da[0].dtype),
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
            ACC=tl_dtype(self._parts.dtype), BLOCK_N=16, BLOCK_K=block,
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
    block = 4096 if INTERPRETED else 128  # the interpreter's time goes by programs
    launch(
        sum_rows_kernel,
        (triton.cdiv(P, block),),
        reads=[parts],
        writes=[out],
        parts_ptr=parts, out_ptr=out, R=R, P=P, stride=parts.stride(0), ACC=tl_dtype(parts.dtype),
        BLOCK_R=min(16, triton.next_power_of_2(R)), BLOCK_P=block,
    )  # fmt: skip
