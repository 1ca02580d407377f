"""The gradient that flows down through one layer, K and V in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton import vendor
from hnkernels.triton._compat import convert
from hnkernels.triton.autotune import choose
from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.activations import activate, derivative
from hnkernels.triton.kernels.arguments import Dropout, LayerGradient, Streams, product
from hnkernels.triton.kernels.dropout import dropout_scale
from hnkernels.triton.kernels.layer_output_backward import layer_output_backward
from hnkernels.triton.kernels.tiles import halves, multiply, tile_of
from hnkernels.triton.launch import launch
from hnkernels.triton.route import route
from hnkernels.triton.target import target_of


@triton.jit(do_not_specialize=["layer_id", "M"])
def hidden_gradient_kernel(
    da_k_ptr,  # [M, K]: gradient of the pre-activations of the layer above
    da_v_ptr,
    w_k_ptr,  # [K, N]: its weight
    w_v_ptr,
    a_ptr,  # [2, M, N]: the pre-activations of this layer, without wb; None without FUSED or an activation
    wb_ptr,  # [2, N]: W β + b of a LayerNorm in front of this layer, or None
    out_ptr,  # [2, M, N]
    h_ptr,  # [2, M, N]: this layer's output once more, or None
    seed_ptr,
    layer_id,
    dropout,
    scale_k,
    scale_v,
    M,
    N,
    K,
    stride_dk,
    stride_dv,
    ACT: tl.constexpr,
    FUSED: tl.constexpr,
    DROPOUT: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``dh = scale · da w``; with FUSED ``dh ∘ mask ∘ act'(a)`` and, for the weight gradient, ``act(a) ∘ mask``.

    Without FUSED a LayerNorm or prelu's slope comes between, and a row kernel goes on from dh.
    """
    wait_for_launches_before()
    stream = tl.program_id(1)
    da_ptr, w_ptr, stride_dm, scale = da_k_ptr, w_k_ptr, stride_dk, scale_k
    if stream == 1:
        da_ptr, w_ptr, stride_dm, scale = da_v_ptr, w_v_ptr, stride_dv, scale_v
    tile_m, tile_n = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.assume(K > 0)  # as in mlp_layer_forward_kernel
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    acc = multiply(acc, da_ptr, w_ptr, rows, cols, M, N, K, stride_dm, N, True, BLOCK_K, EVEN, PRECISION)
    at = stream * (tl.cast(M, tl.int64) * N)
    wb_at = None
    if wb_ptr is not None:
        wb_at = wb_ptr + stream * N
    left, right = halves(scale * acc, BLOCK_M, BLOCK_N)
    for half in tl.static_range(2):
        g = left if half == 0 else right
        cols = tile_n * BLOCK_N + half * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        _store_gradient(
            g, a_ptr, wb_at, out_ptr, h_ptr, at, seed_ptr, dropout, layer_id + stream, rows, cols, M, N, ACT, FUSED,
            DROPOUT,
        )  # fmt: skip


@triton.jit
def _store_gradient(
    g,  # [ROWS, COLS]: scale · da w
    a_ptr,
    wb_ptr,  # this stream's [N], or None
    out_ptr,
    h_ptr,
    start,  # elements to where the stream begins in a, out and h
    seed_ptr,
    dropout,
    layer_id,
    rows,  # [ROWS] int64
    cols,  # [COLS]
    M,
    N,
    ACT: tl.constexpr,
    FUSED: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """The epilogue of ``hidden_gradient_kernel`` for one part of its tile."""
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    at = start + rows[:, None] * N + cols[None, :]
    if FUSED:
        if DROPOUT:
            kept = dropout_scale(seed_ptr, dropout, rows, cols, layer_id)
            g *= kept
        if a_ptr is not None:
            a = tl.load(a_ptr + at, mask=mask, other=0.0).to(g.dtype)
            if wb_ptr is not None:
                a += tl.load(wb_ptr + cols, mask=cols < N, other=0.0)[None, :]
            g *= derivative(a, 0.0, ACT)
            if h_ptr is not None:
                h = activate(a, 0.0, ACT)
                if DROPOUT:
                    h *= kept
                tl.store(h_ptr + at, convert(h, h_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptr + at, convert(g, out_ptr.dtype.element_ty), mask=mask)


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
    with_bias: bool = False,
) -> LayerGradient:
    """``hidden_gradient_kernel``: da [M, K], w [K, N] per stream, a [streams, M, N] → da or dh, and h, like a.

    ``with_bias`` asks for Σ da in parts, where they cost no launch.
    """
    (M, K), N = da[0].shape, w[0].shape[1]
    dtype, device = da[0].dtype, da[0].device
    kind = "backward with dropout" if dropout else "backward" if with_h else "light backward"
    target = target_of(device)
    tiles = choose(kind, M, N, K, dtype, target)
    out = torch.empty(len(da), M, N, device=device, dtype=dtype)
    after = fused and (a is not None or dropout is not None)
    beside = 2 * M * N * ((a is not None) + with_h) if after else 0
    moved = beside + 4 * M * N * after
    by = route(
        kind, M, N, K, dtype, target, tiles, [(M, N, K)] * 2, moved, launches=after, beside=beside, act=act
    )  # fmt: skip
    if by.vendor:
        for i, gradient in enumerate(da):
            vendor.multiply(out[i], gradient, w[i], scale=scale[i], why=by.why)
        if not after:
            return LayerGradient(out)
        return layer_output_backward(
            tuple(out), a, act, dropout=dropout, with_h=with_h, wb=wb, with_bias=with_bias, out=out
        )  # fmt: skip
    h = torch.empty_like(out) if with_h else None
    launch(
        hidden_gradient_kernel,
        (triton.cdiv(M, tiles.block_m) * triton.cdiv(N, tiles.block_n), len(da)),
        tiles=tiles,
        flops=2 * len(da) * M * N * K,
        steps=triton.cdiv(K, tiles.block_k),
        why=by.why,
        writes=("out_ptr", "h_ptr"),
        da_k_ptr=da[0], da_v_ptr=da[-1], w_k_ptr=w[0], w_v_ptr=w[-1], a_ptr=a,
        wb_ptr=None if a is None else wb, out_ptr=out, h_ptr=h,
        seed_ptr=dropout.seed if dropout else None, layer_id=dropout.layer_id if dropout else 0,
        dropout=dropout.p if dropout else 0.0, scale_k=scale[0], scale_v=scale[-1],
        M=M, N=N, K=K, stride_dk=da[0].stride(0), stride_dv=da[-1].stride(0),
        ACT=act, FUSED=fused, DROPOUT=dropout is not None, **product(dtype),
        EVEN=K % tiles.block_k == N % tiles.block_n == 0,
    )  # fmt: skip
    return LayerGradient(out, h)
