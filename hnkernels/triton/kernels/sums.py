"""Sums over rows: what split products, gradients and row kernels leave in parts is added up in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton._compat import convert
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.arguments import acc_dtype, tl_dtype
from hnkernels.triton.launch import launch
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import row_tiles


@triton.jit
def add_up(
    parts_ptr,  # [R, P] fp32, rows ``stride`` apart
    out_ptr,  # [P]
    R,
    P,
    stride,
    block,  # of columns
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """``out = Σ parts`` over the rows, in a fixed order, for one block of columns."""
    cols = block.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    steps = tl.arange(0, BLOCK_R)
    acc = tl.zeros((BLOCK_P,), ACC)
    for r in range(0, R, BLOCK_R):
        mask = (steps < R - r)[:, None] & (cols < P)[None, :]
        at = (r + steps)[:, None].to(tl.int64) * stride + cols[None, :]
        acc += tl.sum(tl.load(parts_ptr + at, mask=mask, other=0.0), 0)
    tl.store(out_ptr + cols, convert(acc, out_ptr.dtype.element_ty), mask=cols < P)


@triton.jit(do_not_specialize=["R_1", "R_2", "R_3", "blocks_1", "blocks_2"])
def sum_rows_kernel(
    parts_1_ptr,  # [R_1, P_1] fp32, rows ``stride_1`` apart
    parts_2_ptr,  # or None, and so on
    parts_3_ptr,
    out_1_ptr,  # [P_1]
    out_2_ptr,
    out_3_ptr,
    R_1,
    R_2,
    R_3,
    P_1,
    P_2,
    P_3,
    stride_1,
    stride_2,
    stride_3,
    blocks_1,  # programs for the first sum
    blocks_2,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,  # of the first sum
    BLOCK_P: tl.constexpr,
    BLOCK_R_2: tl.constexpr,
    BLOCK_P_2: tl.constexpr,
    BLOCK_R_3: tl.constexpr,
    BLOCK_P_3: tl.constexpr,
):
    """Up to three sums over rows side by side."""
    wait_for_launches_before()
    block = tl.program_id(0)
    if block < blocks_1:
        add_up(parts_1_ptr, out_1_ptr, R_1, P_1, stride_1, block, ACC, BLOCK_R, BLOCK_P)
    elif block < blocks_1 + blocks_2:
        if parts_2_ptr is not None:
            add_up(parts_2_ptr, out_2_ptr, R_2, P_2, stride_2, block - blocks_1, ACC, BLOCK_R_2, BLOCK_P_2)
    else:
        if parts_3_ptr is not None:
            block -= blocks_1 + blocks_2
            add_up(parts_3_ptr, out_3_ptr, R_3, P_3, stride_3, block, ACC, BLOCK_R_3, BLOCK_P_3)


def sum_rows(*sums: tuple[Tensor, Tensor]) -> None:
    """``out = Σ parts`` over rows, for every (parts, out), three in a launch. Shape: parts [R, P], rows perhaps apart,
    out [P]. Zero where there are no rows."""
    rest = []
    for parts, out in sums:
        if parts.shape[0]:
            rest.append((parts, out))
        else:
            out.zero_()
    for first in range(0, len(rest), 3):
        _sum_rows(rest[first : first + 3])


def _sum_rows(sums: Sequence[tuple[Tensor, Tensor]]) -> None:
    arguments: dict[str, Any] = {}
    blocks, steps = [], 0
    for i in range(3):
        parts, out = sums[i] if i < len(sums) else (None, None)
        R, P = (0, 0) if parts is None else parts.shape
        tile = row_tiles("sum", R, P, target_of(sums[0][1].device))
        blocks.append(triton.cdiv(P, tile.columns))
        steps = max(steps, triton.cdiv(R, tile.rows))
        suffix = f"_{i + 1}" if i else ""
        arguments |= {
            f"parts_{i + 1}_ptr": parts, f"out_{i + 1}_ptr": out, f"R_{i + 1}": R, f"P_{i + 1}": P,
            f"stride_{i + 1}": 0 if parts is None else parts.stride(0),
            f"BLOCK_R{suffix}": 1 if parts is None else tile.rows,
            f"BLOCK_P{suffix}": 1 if parts is None else tile.columns,
        }  # fmt: skip
    launch(
        sum_rows_kernel,
        (sum(blocks),),
        steps=steps,
        writes=("out_1_ptr", "out_2_ptr", "out_3_ptr"),
        blocks_1=blocks[0], blocks_2=blocks[1], ACC=tl_dtype(acc_dtype(sums[0][0].dtype)), num_warps=4, **arguments,
    )  # fmt: skip
