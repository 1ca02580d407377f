"""A linear layer with low-rank weights of its own for every sample, and the ways in which it is usually written."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def lowrank_linear(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    index: Tensor | None = None,
) -> Tensor:
    """``y[s] = x[s] Wᵀ + bias + scale[s]·(x[s] A[i]ᵀ) B[i]ᵀ`` with i = index[s], sample by sample.

    Without an index every set serves as many consecutive samples. Shape: x [S, ..., d]; weight [n, d]; a [G, r, d];
    b [G, n, r]; scale [S]; bias [n]; index [S]; the result [S, ..., n].
    """
    samples, sets = x.shape[0], a.shape[0]
    rows = []
    for s in range(samples):
        i = int(index[s]) if index is not None else s * sets // samples
        change = (x[s] @ a[i].mT) @ b[i].mT
        rows.append(F.linear(x[s], weight, bias) + (change if scale is None else scale[s] * change))
    return torch.stack(rows) if rows else x.new_zeros(*x.shape[:-1], weight.shape[0])


def by_einsum(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Two einsums, a product and a sum, as re-implementations of HyperDreamBooth have it. x [S, tokens, d]."""
    down = torch.einsum("std,srd->str", x, a)
    up = torch.einsum("str,snr->stn", down, b)
    return F.linear(x, weight) + up * scale[:, None, None]


def by_token(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """The factors repeated for every token and applied token by token, as Text-to-LoRA does. x [S, tokens, d]."""
    samples, tokens, width = x.shape
    flat = x.reshape(samples * tokens, width, 1)
    a, b = (t.repeat_interleave(tokens, dim=0) for t in (a, b))
    change = torch.bmm(b, torch.bmm(a, flat)).view(samples, tokens, -1)
    return F.linear(x, weight) + change * scale[:, None, None]


def by_loop(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """A Python loop over the samples, as mixed adapter batches have it. x [S, tokens, d]."""
    base = F.linear(x, weight)
    changes = [scale[s] * ((x[s] @ a[s].mT) @ b[s].mT) for s in range(x.shape[0])]
    return base + torch.stack(changes)
