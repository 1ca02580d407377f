"""A hidden layer and the projection after it in one launch, where a program can hold whole rows of both: narrow ones.

The hidden activations of ``x wᵀ + act(x w1ᵀ + b1) gᵀ + c`` are made a chunk at a time and multiplied at once, so that
they never reach memory. For that a program keeps its rows of x in shared memory and its rows of the result in
registers. Hopper alone has room for 320 columns of both, the narrowest self-attention of Stable Diffusion, without
spills, 205 KB and up to 255 registers a thread. Elsewhere, and without a gain by the model, ``layer_forward`` and
``linear`` do it in two launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton import cost
from hnkernels.triton._compat import convert, dot
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.activations import activate
from hnkernels.triton.kernels.arguments import Streams, product
from hnkernels.triton.launch import launch
from hnkernels.triton.route import by_best, wanted
from hnkernels.triton.target import Target
from hnkernels.triton.tiling import HALF, MOST_SPLITS, Tiles, forced_tiles

TARGET = "sm_90"

TILES = (Tiles(128, 256, 32, 8, 3), Tiles(64, 256, 64, 8, 2))
"""Rows, columns of the left part of the result, hidden units of a chunk. Both compile with every activation. More rows
read the weights less often; fewer leave no processor idle at 4096 tokens."""


def columns(tiles: Tiles) -> int:
    """Those of x and of the result that a program holds: a block and, on its right, a quarter of one."""
    return tiles.block_n + tiles.block_n // 4


@triton.jit(do_not_specialize=["M"])
def hidden_and_projection_kernel(
    x_k_ptr,  # [M, K]
    x_v_ptr,
    w1_k_ptr,  # [H, K]
    w1_v_ptr,
    b1_k_ptr,  # [H]
    b1_v_ptr,
    w_k_ptr,  # [N_k, K]
    w_v_ptr,  # [N_v, K]
    g_k_ptr,  # [N_k, H]
    g_v_ptr,  # [N_v, H]
    c_k_ptr,  # [N_k]
    c_v_ptr,  # [N_v]
    query_w_ptr,  # [QUERY_N, K]: to_q's weight, or None
    query_b_ptr,  # [QUERY_N]
    out_k_ptr,  # [M, N_k]
    out_v_ptr,
    query_out_ptr,  # [M, QUERY_N]
    M,
    N_k,
    N_v,
    QUERY_N,
    stride_xk,
    stride_xv,
    K: tl.constexpr,  # known, these leave registers to others than addresses
    H: tl.constexpr,
    ACT: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,  # K and all N fill the columns of a program, chunks fill K and H
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,  # without a meaning: there is one column of tiles
):
    """``out = x wᵀ + act(x w1ᵀ + b1) gᵀ + c``; with a query, stream 2 is ``x query_wᵀ + query_b``.

    320 is not a power of two: x and the result are a left part of BLOCK_N columns and a right one of BLOCK_N / 4.
    """
    wait_for_launches_before()
    stream = tl.program_id(1)
    x_ptr, stride_xm, w1_ptr, b1_ptr, w_ptr, g_ptr = x_k_ptr, stride_xk, w1_k_ptr, b1_k_ptr, w_k_ptr, g_k_ptr
    c_ptr, out_ptr, N, hidden = c_k_ptr, out_k_ptr, N_k, H
    if stream == 1:
        x_ptr, stride_xm, w1_ptr, b1_ptr, w_ptr, g_ptr = x_v_ptr, stride_xv, w1_v_ptr, b1_v_ptr, w_v_ptr, g_v_ptr
        c_ptr, out_ptr, N = c_v_ptr, out_v_ptr, N_v
    if query_w_ptr is not None:
        if stream == 2:
            w_ptr, c_ptr, out_ptr, N, hidden = query_w_ptr, query_b_ptr, query_out_ptr, QUERY_N, 0
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    left, right = tl.arange(0, BLOCK_N), BLOCK_N + tl.arange(0, BLOCK_N // 4)
    units = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + tl.where(rows < M, rows, 0)[:, None] * stride_xm  # others are never stored
    x_left = _load(x_rows + left[None, :], (left < K)[None, :], EVEN)
    x_right = _load(x_rows + right[None, :], (right < K)[None, :], EVEN)
    acc_left = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    acc_right = tl.zeros((BLOCK_M, BLOCK_N // 4), ACC)
    for first in range(0, hidden, BLOCK_K):
        chunk = first + units
        inside = chunk < H
        w1 = w1_ptr + first * K + units[None, :] * K
        w1_left = _load(w1 + left[:, None], (left < K)[:, None] & inside[None, :], EVEN)
        w1_right = _load(w1 + right[:, None], (right < K)[:, None] & inside[None, :], EVEN)
        a = dot(x_left, w1_left, tl.zeros((BLOCK_M, BLOCK_K), ACC), PRECISION)
        a = dot(x_right, w1_right, a, PRECISION)
        a += _load(b1_ptr + chunk, inside, EVEN).to(ACC)[None, :]
        z = convert(activate(a, 0.0, ACT), x_ptr.dtype.element_ty)
        acc_left = _multiply(acc_left, z, g_ptr + first, left, units, N, H, inside, EVEN, PRECISION)
        acc_right = _multiply(acc_right, z, g_ptr + first, right, units, N, H, inside, EVEN, PRECISION)
    for first in range(0, K, BLOCK_K):
        inside = first + units < K
        x = _load(x_rows + first + units[None, :], inside[None, :], EVEN)
        acc_left = _multiply(acc_left, x, w_ptr + first, left, units, N, K, inside, EVEN, PRECISION)
        acc_right = _multiply(acc_right, x, w_ptr + first, right, units, N, K, inside, EVEN, PRECISION)
    acc_left += _load(c_ptr + left, left < N, EVEN).to(ACC)[None, :]
    acc_right += _load(c_ptr + right, right < N, EVEN).to(ACC)[None, :]
    out = out_ptr + rows[:, None] * N
    mask = (rows < M)[:, None]
    tl.store(out + left[None, :], convert(acc_left, out_ptr.dtype.element_ty), mask=mask & (left < N)[None, :])
    tl.store(out + right[None, :], convert(acc_right, out_ptr.dtype.element_ty), mask=mask & (right < N)[None, :])


@triton.jit
def _load(ptr, mask, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(ptr)
    return tl.load(ptr, mask=mask, other=0.0)


@triton.jit
def _multiply(
    acc,  # [BLOCK_M, COLS]
    x,  # [BLOCK_M, BLOCK_K]
    w_ptr,  # [N, stride_w], at the first unit
    cols,  # [COLS]
    units,  # [BLOCK_K]
    N,
    stride_w,
    inside,  # [BLOCK_K]: which units there are
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``acc + x wᵀ`` for these columns and units."""
    w = _load(
        w_ptr + units[:, None] + cols[None, :] * stride_w, inside[:, None] & (cols < N)[None, :], EVEN
    )  # fmt: skip
    return dot(x, w, acc, PRECISION)


def hidden_and_projection(
    x: Streams,
    w1: Streams,
    b1: Streams,
    act: str,
    w: Streams,
    g: Streams,
    c: Streams,
    *,
    tiles: Tiles,
    query: tuple[Tensor, Tensor | None] | None = None,
) -> list[Tensor]:
    """``x wᵀ + act(x w1ᵀ + b1) gᵀ + c`` per stream and, with a query (weight [R, K], bias [R]), its product with x_k.

    Shape: x [M, K], w1 [H, K], b1 [H], w [N, K], g [N, H], c [N] → [M, N] per stream, [M, R]. N may differ between the
    streams; K, N and R are at most the columns of the tiles.
    """
    (M, K), H, dtype, device = x[0].shape, w1[0].shape[0], x[0].dtype, x[0].device
    query_w, query_b = query or (None, None)
    if query_w is not None and query_b is None:
        query_b = torch.zeros(query_w.shape[0], device=device, dtype=dtype)
    weights = w if query_w is None else (*w, query_w)
    outs = [torch.empty(M, t.shape[0], device=device, dtype=dtype) for t in weights]
    streams, query_n, blocks = len(w), 0 if query_w is None else query_w.shape[0], triton.cdiv(M, tiles.block_m)
    launch(
        hidden_and_projection_kernel,
        (blocks, len(weights)),
        tiles=tiles,
        flops=2 * M * sum(K * H + t.shape[0] * (H + K) for t in w) + 2 * M * K * query_n,
        steps=triton.cdiv(K, tiles.block_k),
        chain=_chain(streams * blocks, H, tiles),
        writes=("out_k_ptr", "out_v_ptr", "query_out_ptr"),
        x_k_ptr=x[0], x_v_ptr=x[-1], w1_k_ptr=w1[0], w1_v_ptr=w1[-1], b1_k_ptr=b1[0], b1_v_ptr=b1[-1],
        w_k_ptr=w[0], w_v_ptr=w[-1], g_k_ptr=g[0], g_v_ptr=g[-1],
        c_k_ptr=c[0], c_v_ptr=c[-1], query_w_ptr=query_w, query_b_ptr=query_b,
        out_k_ptr=outs[0], out_v_ptr=outs[streams - 1], query_out_ptr=None if query_w is None else outs[-1],
        M=M, N_k=w[0].shape[0], N_v=w[-1].shape[0], QUERY_N=query_n, K=K, H=H,
        stride_xk=x[0].stride(0), stride_xv=x[-1].stride(0),
        ACT=act, **product(dtype), EVEN=_even(K, H, [t.shape[0] for t in weights], tiles),
    )  # fmt: skip
    return outs


def choose(M: int, K: int, H: int, widths: Sequence[int], act: str, dtype: torch.dtype, target: Target) -> Tiles | None:
    """The tiles with which one launch takes less time than two by the model; ``None`` where two are to be launched.

    Tiles that are forced decide by themselves: those of ``TILES`` belong to one launch, all others to two.

    Args:
        M, K, H: rows and columns of x, hidden units.
        widths: columns of the results.
        act: the activation, by the device's name.
    """
    if target.name not in (TARGET, "interpreter") or wanted() == "vendor":
        return None
    forced = forced_tiles()
    if forced is not None:
        return forced if forced in TILES and max(K, *widths) <= columns(forced) else None
    if dtype not in HALF or not all(_even(K, H, widths, tiles) for tiles in TILES):
        return None  # masks would take registers that the compiler then spills
    return _by_model(M, K, H, act, target) if target.name == TARGET else None


@lru_cache
def _by_model(M: int, K: int, H: int, act: str, target: Target) -> Tiles | None:
    """K and V in half precision: the query, which comes along either way, is left out."""
    if M == 0:
        return None
    operations = cost.epilogue(act, derived=False)
    layer = by_best("light layer", M, H, K, target, operations, after=0 if act == "relu" else 4 * M * H)
    apart = layer + by_best("linear", M, K, K + H, target, most_splits=MOST_SPLITS)

    def seconds(tiles: Tiles) -> float:
        programs = 2 * triton.cdiv(M, tiles.block_m)
        chain = _chain(programs, H, tiles)._replace(operations=operations)
        busy = cost.seconds_of_chain(chain, programs, K // tiles.block_k, target)
        return cost.LAUNCH + cost.FIRST_LOAD + busy

    best = min(TILES, key=seconds)
    return best if seconds(best) < apart else None


def _chain(programs: int, H: int, tiles: Tiles) -> cost.Chain:
    width = columns(tiles)
    steps = triton.cdiv(H, tiles.block_k)
    return cost.Chain(programs, steps, tiles.block_m, width, width, tiles.block_k, tiles.warps, tiles.stages)


def _even(K: int, H: int, widths: Sequence[int], tiles: Tiles) -> bool:
    """Whether nothing needs a mask but the rows."""
    width = columns(tiles)
    return {K, *widths} == {width} and width % tiles.block_k == 0 and H % tiles.block_k == 0
