"""The two vectors that a product finishes a LayerNorm with. γ may be 0 or negative, and is never divided by."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hnkernels.triton.compiling import wait_for_launches_before
from hnkernels.triton.kernels.arguments import Streams, acc_dtype, tl_dtype
from hnkernels.triton.launch import launch
from hnkernels.triton.target import target_of
from hnkernels.triton.tiling import row_tiles


@triton.jit
def norm_vectors_kernel(
    w_k_ptr,  # [N, K]
    w_v_ptr,
    bias_k_ptr,  # [N]
    bias_v_ptr,
    g_k_ptr,  # [K]: γ of the LayerNorm in front
    g_v_ptr,
    b_k_ptr,  # [K]: β
    b_v_ptr,
    wg_ptr,  # [2, N] fp32: W γ
    wb_ptr,  # [2, N] fp32: W β + bias
    N,
    K,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The two vectors that a LayerNorm folds into the linear after it."""
    wait_for_launches_before()
    stream = tl.program_id(1)
    w_ptr, bias_ptr, g_ptr, b_ptr = w_k_ptr, bias_k_ptr, g_k_ptr, b_k_ptr
    if stream == 1:
        w_ptr, bias_ptr, g_ptr, b_ptr = w_v_ptr, bias_v_ptr, g_v_ptr, b_v_ptr
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    by_gamma = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    by_beta = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    for k in range(0, K, BLOCK_K):
        inside = depth < K - k
        mask = (rows < N)[:, None] & inside[None, :]
        w = tl.load(w_ptr + rows[:, None].to(tl.int64) * K + (k + depth)[None, :], mask=mask, other=0.0).to(ACC)
        by_gamma += w * tl.load(g_ptr + k + depth, mask=inside, other=0.0).to(ACC)[None, :]
        by_beta += w * tl.load(b_ptr + k + depth, mask=inside, other=0.0).to(ACC)[None, :]
    bias = tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(ACC)
    tl.store(wg_ptr + stream * N + rows, tl.sum(by_gamma, axis=1), mask=rows < N)
    tl.store(wb_ptr + stream * N + rows, tl.sum(by_beta, axis=1) + bias, mask=rows < N)


def norm_vectors(w: Streams, bias: Streams, gamma: Streams, beta: Streams) -> tuple[Tensor, Tensor]:
    """``W γ`` and ``W β + bias`` for both streams. Shape: w [N, K], bias [N], gamma, beta [K] → two of [streams, N]."""
    N, K = w[0].shape
    acc = acc_dtype(w[0].dtype)
    wg, wb = (torch.empty(len(w), N, device=w[0].device, dtype=acc) for _ in range(2))
    block = row_tiles("norm vectors", N, K, target_of(w[0].device))
    launch(
        norm_vectors_kernel,
        (triton.cdiv(N, block.rows), len(w)),
        flops=4 * len(w) * N * K,
        steps=triton.cdiv(K, block.columns),
        writes=("wg_ptr", "wb_ptr"),
        w_k_ptr=w[0], w_v_ptr=w[-1], bias_k_ptr=bias[0], bias_v_ptr=bias[-1], g_k_ptr=gamma[0], g_v_ptr=gamma[-1],
        b_k_ptr=beta[0], b_v_ptr=beta[-1], wg_ptr=wg, wb_ptr=wb, N=N, K=K,
        ACC=tl_dtype(acc), BLOCK_N=block.rows, BLOCK_K=block.columns, num_warps=block.warps,
    )  # fmt: skip
    return wg, wb
