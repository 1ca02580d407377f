"""The launches of linears with low-rank weights of their own for every sample, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import triton
from torch import Tensor

from hnkernels.triton._compat import INTERPRETED
from hnkernels.triton.launch import launch
from hnkernels.triton.launchers.arguments import acc_dtype, product, tl_dtype
from hnkernels.triton.lowrank_backward import (
    lowrank_factor_gradient_kernel,
    lowrank_input_gradient_kernel,
    lowrank_shrink_kernel,
    lowrank_sum_kernel,
)
from hnkernels.triton.lowrank_forward import lowrank_add_kernel, lowrank_forward_kernel
from hnkernels.triton.tiling import Tiles, beside_ranks, choose, of_ranks, splits, target_of

POINTERS = 3
"""So many slices travel as arguments: q, k and v. More of them go through a table in the device's memory."""


@dataclass(frozen=True)
class LowRank:
    """The samples and the factors of every slice, all contiguous but x. With a table all begin at 16 bytes.

    Attributes:
        x: [S, T, d], rows contiguous.
        a, b: [G, r_p, d] and [G, n_p, r_p].
        scale: [slices, S], rows contiguous, or None for 1.
        index: [S] int64, or None where every set serves as many consecutive samples.
    """

    x: Tensor
    a: Sequence[Tensor]
    b: Sequence[Tensor]
    scale: Tensor | None
    index: Tensor | None

    @property
    def widths(self) -> list[int]:
        """n of every slice."""
        return [t.shape[1] for t in self.b]

    @property
    def ranks(self) -> list[int]:
        """r of every slice."""
        return [t.shape[2] for t in self.b]

    @property
    def sets(self) -> int:
        """G."""
        return self.a[0].shape[0]

    @property
    def tabled(self) -> bool:
        """Whether the slices are too many to be passed as arguments."""
        return len(self.a) > POINTERS

    @property
    def aligned(self) -> bool:
        """Whether every n is a multiple of 16."""
        return all(n % 16 == 0 for n in self.widths)

    @property
    def block_r(self) -> int:
        """What ranks are filled up to."""
        return max(16, triton.next_power_of_2(max(self.ranks)))

    @property
    def rows(self) -> int:
        """By which tiles are chosen. A tile has tokens of one sample: few of them fill no large one."""
        samples, tokens, _ = self.x.shape
        return tokens if tokens < 128 else samples * tokens

    @property
    def elements(self) -> list[int]:
        """Of a set's factors, in every slice."""
        d = self.x.shape[2]
        return [r * (d + n) for n, r in zip(self.widths, self.ranks, strict=True)]

    def arguments(self) -> dict[str, Any]:
        """Those that every kernel has."""
        return {
            "T": self.x.shape[1],
            **_numbers("N", self.widths),
            **_numbers("r", self.ranks),
            "scale_ptr": self.scale,
            "stride_scale": 0 if self.scale is None else self.scale.stride(0),
            "samples": self.x.shape[0],
        }

    def sets_arguments(self) -> dict[str, Any]:
        """How a kernel finds the set of a sample."""
        return {"index_ptr": self.index, "each": self.x.shape[0] // max(self.sets, 1)}

    def alignment(self) -> dict[str, Any]:
        """What the compiler cannot see of widths and ranks that are chosen at run time."""
        multiple = next(m for m in (16, 8, 4, 2, 1) if all(r % m == 0 for r in self.ranks))
        return {"MULTIPLE": multiple, "ALIGNED": self.aligned}

    def pointers(self, name: str, tensors: Sequence[Tensor | None]) -> dict[str, Tensor | None]:
        """One tensor per slice as three arguments, which no slice uses where there is a table."""
        chosen = (None,) * POINTERS if self.tabled else _three(tensors)
        return {f"{name}_{i}_ptr": t for i, t in enumerate(chosen)}

    def table(
        self,
        each: Sequence[Tensor] = (),
        w: Sequence[Tensor] = (),
        bias: Sequence[Tensor | None] = (),
        keep: bool = False,
    ) -> Tensor | None:
        """The slices' table, with a tensor of each (dy, or what is added to); None if the slices are arguments.

        ``keep`` keeps it for the next call with the same addresses: of tensors that stay where they are.
        """
        if not self.tabled:
            return None
        count = len(self.a)
        none = [None] * count
        columns: list[Sequence[int]] = [
            [0 if t is None else t.data_ptr() for t in tensors or none] for tensors in (each, w, bias, self.a, self.b)
        ]
        columns += [self.widths, self.ranks]
        columns += [[0, *accumulate(sizes)][:count] for sizes in (self.widths, self.ranks, self.elements)]
        rows = tuple(zip(*columns, strict=True))
        return _kept_table(rows, self.x.device) if keep else _table(rows, self.x.device)


def _table(rows: tuple[tuple[int, ...], ...], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(rows, dtype=dtype).to(device, non_blocking=True)


_kept_table = lru_cache(maxsize=64)(_table)
"""A table holds nothing but its arguments, so keeping it is safe."""


def _three(values: Sequence[Any]) -> list[Any]:
    """Padded to three by the last one, which no program looks at."""
    return [*values, *[values[-1]] * (POINTERS - len(values))]


def _numbers(name: str, values: Sequence[int]) -> dict[str, int]:
    """The first three, or 0 for those that there are not."""
    padded = [*values[:POINTERS], *[0] * (POINTERS - len(values))]
    return {f"{name}_{i}": value for i, value in enumerate(padded)}


def _outputs(slices: LowRank) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """[S, T, n_p] for every slice, or with a table one flat tensor; and the arguments."""
    samples, tokens, _ = slices.x.shape
    if slices.tabled:
        flat = slices.x.new_empty(samples * tokens * sum(slices.widths))
        return [flat], {"out_0_ptr": flat, "out_1_ptr": None, "out_2_ptr": None}
    outs = [slices.x.new_empty(samples, tokens, n) for n in slices.widths]
    return outs, slices.pointers("out", outs)


def lowrank_linear(slices: LowRank, w: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """``lowrank_forward_kernel``: w [n_p, d], bias [n_p] → [S, T, n_p] for every slice, or flat with a table."""
    x = slices.x
    samples, tokens, d = x.shape
    target = target_of(x.device)
    tiles = choose("forward", slices.rows, max(slices.widths), d, x.dtype, target)
    tiles = beside_ranks(tiles, slices.block_r, target)
    per_slice = [triton.cdiv(n, tiles.block_n) for n in slices.widths]
    tile_table = None
    if slices.tabled:
        places = tuple((p, i) for p, count in enumerate(per_slice) for i in range(count))
        tile_table = _kept_table(places, x.device, torch.int32)
    elif any(t is not None for t in biases):  # a bias on some only is rare: the others' is 0
        biases = [x.new_zeros(n) if t is None else t for t, n in zip(biases, slices.widths, strict=True)]
    outs, out_arguments = _outputs(slices)
    launch(
        lowrank_forward_kernel,
        (samples * triton.cdiv(tokens, tiles.block_m) * sum(per_slice),),
        tiles=tiles,
        flops=2 * samples * tokens * (d * sum(slices.widths) + sum(slices.elements)),
        reads=[x, *w, *biases, *slices.a, *slices.b, slices.scale, slices.index],
        writes=outs,
        x_ptr=x, **slices.pointers("w", w), **slices.pointers("bias", biases), **slices.pointers("a", slices.a),
        **slices.pointers("b", slices.b), **out_arguments, table_ptr=slices.table(w=w, bias=biases, keep=True),
        tiles_ptr=tile_table, **slices.arguments(), **slices.sets_arguments(), K=d, tiles_n=sum(per_slice),
        stride_xs=x.stride(0), stride_xm=x.stride(1), BLOCK_R=slices.block_r, **slices.alignment(),
        **product(x.dtype), EVEN=d % tiles.block_k == 0,
    )  # fmt: skip
    return outs


def lowrank_add(slices: LowRank, bases: Sequence[Tensor]) -> list[Tensor]:
    """``lowrank_add_kernel``: bases [S, T, n_p] → the same for every slice, or flat with a table."""
    x = slices.x
    samples, tokens, d = x.shape
    tiles = _shrinking(slices, d)
    outs, out_arguments = _outputs(slices)
    launch(
        lowrank_add_kernel,
        (samples * triton.cdiv(tokens, tiles.block_m), len(slices.a)),
        tiles=tiles,
        flops=2 * samples * tokens * sum(slices.elements),
        reads=[*bases, x, *slices.a, *slices.b, slices.scale, slices.index],
        writes=outs,
        **slices.pointers("base", bases), x_ptr=x, **slices.pointers("a", slices.a), **slices.pointers("b", slices.b),
        **out_arguments, table_ptr=slices.table(bases), **slices.arguments(), **slices.sets_arguments(), K=d,
        stride_xs=x.stride(0), stride_xm=x.stride(1), BLOCK_R=slices.block_r, **slices.alignment(),
        **product(x.dtype), EVEN=d % tiles.block_k == 0,
    )  # fmt: skip
    return outs


def lowrank_shrink(
    slices: LowRank, table: Tensor | None, dy: Sequence[Tensor], *, with_u: bool, scale_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """``lowrank_shrink_kernel``: dy [S, T, n_p] → g_p = dy_p b_p [S, T, r_p] flat, and u_p = x a_pᵀ likewise.

    ``scale_gradient`` asks for them where the scale is 0 too.
    """
    x = slices.x
    samples, tokens, d = x.shape
    tiles = replace(_shrinking(slices, max(d, *slices.widths)), block_n=slices.block_r)
    g = x.new_empty(samples * tokens * sum(slices.ranks))
    u = torch.empty_like(g) if with_u else None
    elements = slices.elements if with_u else [t.numel() // max(slices.sets, 1) for t in slices.b]
    launch(
        lowrank_shrink_kernel,
        (samples * triton.cdiv(tokens, tiles.block_m), len(slices.a) * (1 + with_u)),
        tiles=tiles,
        flops=2 * samples * tokens * sum(elements),
        reads=[*dy, *slices.b, *([x, *slices.a] if with_u else []), slices.scale, slices.index],
        writes=[g, u],
        x_ptr=x, **slices.pointers("dy", dy), **slices.pointers("a", slices.a), **slices.pointers("b", slices.b),
        g_ptr=g, u_ptr=u, table_ptr=table, **slices.arguments(), **slices.sets_arguments(), D=d,
        stride_xs=x.stride(0), stride_xm=x.stride(1), SCALE_GRADIENT=scale_gradient, **slices.alignment(),
        **product(x.dtype), EVEN=d % tiles.block_k == 0,
        EVEN_N=all(n % tiles.block_k == 0 for n in slices.widths) and all(r == slices.block_r for r in slices.ranks),
    )  # fmt: skip
    return g, u


def lowrank_input_gradient(
    slices: LowRank, table: Tensor | None, dy: Sequence[Tensor], w: Sequence[Tensor], g: Tensor
) -> Tensor:
    """``lowrank_input_gradient_kernel``: dy [S, T, n_p], w [n_p, d] or none at all, g flat → dx [S, T, d]."""
    x = slices.x
    samples, tokens, d = x.shape
    target = target_of(x.device)
    tiles = choose("backward", slices.rows, d, max(slices.widths), x.dtype, target)
    if w:
        tiles = beside_ranks(tiles, slices.block_r, target)
        if (tiles.block_m, tiles.block_n) == (128, 64):  # the slices' pointers take registers
            tiles = replace(tiles, block_k=32, stages=4)
    elif slices.block_r > 16:
        tiles = replace(of_ranks(tiles, slices.block_r, target), block_n=128, warps=4)
    else:  # wide ones read g, whose rows are short, fewer times
        rows = 64 if target.arch == 90 else 32  # wgmma takes no fewer
        tiles = replace(tiles, block_m=min(tiles.block_m, rows), block_n=256, warps=4)
    dx = x.new_empty(samples, tokens, d)
    launch(
        lowrank_input_gradient_kernel,
        (samples * triton.cdiv(tokens, tiles.block_m) * triton.cdiv(d, tiles.block_n),),
        tiles=tiles,
        flops=2 * samples * tokens * (sum(t.numel() for t in w) + d * sum(slices.ranks)),
        reads=[*(dy if w else ()), *w, *slices.a, g, slices.scale, slices.index],
        writes=[dx],
        **slices.pointers("dy", dy), **slices.pointers("w", w or [None]), **slices.pointers("a", slices.a),
        g_ptr=g, dx_ptr=dx, table_ptr=table, **slices.arguments(), **slices.sets_arguments(), D=d,
        slices=len(slices.a), BASE=len(w) > 0, BLOCK_R=slices.block_r, **slices.alignment(), **product(x.dtype),
        EVEN=d % tiles.block_n == 0 and all(n % tiles.block_k == 0 for n in slices.widths),
    )  # fmt: skip
    return dx


def lowrank_factor_gradients(
    slices: LowRank,
    table: Tensor | None,
    dy: Sequence[Tensor],
    g: Tensor,
    u: Tensor,
    *,
    factors: bool,
    scale: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """``lowrank_factor_gradient_kernel``: dy [S, T, n_p], g and u flat → the factors' gradients in parts
    [S, splits, elements], and those of the scale [slices, S, splits], each if it is asked for. fp32."""
    x = slices.x
    samples, tokens, d = x.shape
    widest = max(d, *slices.widths)
    target = target_of(x.device)
    tiles = choose("gradient", tokens, widest, slices.block_r, x.dtype, target)
    # A thread of four warps runs out of registers where there are many ranks.
    tiles = replace(tiles, block_k=slices.block_r, warps=8 if slices.block_r > 16 else tiles.warps)
    columns = triton.cdiv(widest, tiles.block_n)
    # The fewer the ranks the less a part costs, and the more of them are worth it.
    programs = 2 * columns * len(slices.a) * max(samples, 1)
    count = splits(tokens, triton.cdiv(programs * slices.block_r, 256), tiles.block_m, target)
    per_split = max(triton.cdiv(triton.cdiv(tokens, count), tiles.block_m), 1) * tiles.block_m
    count = triton.cdiv(tokens, per_split)
    acc = acc_dtype(x.dtype)
    parts = x.new_empty(samples, count, sum(slices.elements), dtype=acc) if factors else None
    sums = x.new_empty(len(slices.a), samples, count, dtype=acc) if scale else None
    launch(
        lowrank_factor_gradient_kernel,
        (samples * count * columns, 3 * len(slices.a)),
        tiles=tiles,
        flops=2 * samples * tokens * sum(slices.elements) if factors else 0,
        reads=[*([x, *dy] if factors else []), g, u, slices.scale],
        writes=[parts, sums],
        x_ptr=x, **slices.pointers("dy", dy), g_ptr=g, u_ptr=u, parts_ptr=parts, sums_ptr=sums,
        table_ptr=table, **slices.arguments(), D=d, splits=count, tiles_n=columns,
        rows_per_split=per_split, elements=sum(slices.elements), stride_xs=x.stride(0), stride_xm=x.stride(1),
        **slices.alignment(), **product(x.dtype),
        EVEN=tokens % tiles.block_m == d % tiles.block_n == 0 and all(n % tiles.block_n == 0 for n in slices.widths),
    )  # fmt: skip
    return parts, sums


def lowrank_sums(
    slices: LowRank, table: Tensor | None, parts: Tensor | None, sums: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """``lowrank_sum_kernel``: what ``lowrank_factor_gradients`` made, added up: da [G, r_p, d] and db [G, n_p, r_p] of
    every slice, flat, and dscale [slices, S]."""
    x = slices.x
    samples = x.shape[0]
    flat = None if parts is None else x.new_empty(slices.sets * sum(slices.elements))
    dscale = None if sums is None else sums.new_empty(sums.shape[:2])
    # The interpreter's time goes by programs. Many samples are added up one after the other: small blocks spread them.
    block = 4096 if INTERPRETED else 256
    blocks = triton.cdiv(max(samples, 1) if parts is None else max(*slices.elements, samples), block)
    sets = 0 if parts is None else slices.sets
    count = 0 if parts is None else parts.shape[1]
    if sums is not None:
        count = sums.shape[2]
    launch(
        lowrank_sum_kernel,
        (blocks * (sets + (sums is not None)), len(slices.a)),
        reads=[parts, sums, slices.scale, slices.index],
        writes=[flat, dscale],
        parts_ptr=parts, out_ptr=flat, sums_ptr=sums, dscale_ptr=dscale,
        table_ptr=table, **slices.arguments(), **slices.sets_arguments(),
        D=x.shape[2], blocks=blocks, sets=sets, splits=count,
        elements=sum(slices.elements), ACC=tl_dtype(acc_dtype(x.dtype)),
        BLOCK_R=min(8, triton.next_power_of_2(max(count, 1))), BLOCK_P=block,
    )  # fmt: skip
    return flat, dscale


def _shrinking(slices: LowRank, depth: int) -> Tiles:
    """Tiles for [T, depth] × [depth, r]."""
    x, target = slices.x, target_of(slices.x.device)
    tiles = choose("forward", slices.rows, slices.block_r, depth, x.dtype, target)
    return of_ranks(tiles, slices.block_r, target)
