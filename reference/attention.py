"""Attention with a hypernetwork in front of its K and V projections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.mlp import chain


def project_kv(
    context: Tensor,
    mlps_k: Sequence[nn.Module],
    mlps_v: Sequence[nn.Module],
    w_k: Tensor,
    w_v: Tensor,
    b_k: Tensor | None = None,
    b_v: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``K = chain_k(context) · w_kᵀ + b_k`` and ``V`` likewise.

    Shape: context [..., d]; w_k, w_v [n, d]; b_k, b_v [n]; K, V [..., n].
    """
    return F.linear(chain(context, mlps_k), w_k, b_k), F.linear(chain(context, mlps_v), w_v, b_v)


def attention(
    x: Tensor,
    context: Tensor,
    mlps_k: Sequence[nn.Module],
    mlps_v: Sequence[nn.Module],
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    heads: int,
) -> Tensor:
    """Multi-head attention as Stable Diffusion has it; the hypernetwork changes K and V, never Q.

    Shape: x [batch, tokens, c]; context [batch, context tokens, d]; w_q [n, c]; w_k, w_v [n, d]; w_out [c, n];
    the result [batch, tokens, c]. ``heads`` divides n.
    """
    q = F.linear(x, w_q)
    k, v = project_kv(context, mlps_k, mlps_v, w_k, w_v)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # [batch, heads, tokens, n / heads]
    weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
    return F.linear((weights @ v).transpose(1, 2).flatten(-2), w_out, b_out)
