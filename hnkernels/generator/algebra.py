"""Algebra of low-rank products ΔW = B A on their factors, without the products."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_norms(a: Tensor, b: Tensor) -> Tensor:
    """‖B A‖² in the Frobenius norm, by ``tr(BᵀB · AAᵀ)``: r·r numbers instead of n·d.

    Args:
        a, b: [..., r, d] and [..., n, r].

    Returns:
        [...] in fp32 or wider, never below 0.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = at_least_fp32(a), at_least_fp32(b)
        return ((a @ a.mT) * (b.mT @ b)).sum((-2, -1)).clamp_min(0)


@torch.no_grad()
def recompressed(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the best approximation of B A of a rank (Eckart and Young, 1936), or of B A's own if that is less.

    With B = Q₁R₁ and Aᵀ = Q₂R₂ the singular values of B A are those of the small R₁R₂ᵀ.

    Args:
        a, b: [..., R, d] and [..., n, R].
        rank: r; the result's is ``min(r, R, n, d)``.

    Returns:
        [..., r, d] and [..., n, r] of equal norms, in the dtypes of the arguments.
    """
    q_b, r_b = torch.linalg.qr(at_least_fp32(b))
    q_a, r_a = torch.linalg.qr(at_least_fp32(a).mT)
    u, s, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    root = s[..., :rank].sqrt()
    up = (q_b @ u[..., :rank]) * root[..., None, :]
    down = root[..., None] * (vh[..., :rank, :] @ q_a.mT)
    return down.to(a.dtype).contiguous(), up.to(b.dtype).contiguous()


def at_full_rank(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of B A, [..., R, d] and [..., n, R], whose rank is the smaller side: B A and an identity.

    For an R above that side, where B A is the smaller of the two.
    """
    delta = b @ a
    n, d = delta.shape[-2:]
    eye = torch.eye(min(n, d), dtype=delta.dtype, device=delta.device).expand(*delta.shape[:-2], -1, -1)
    return (delta, eye) if n <= d else (eye, delta)


def at_least_fp32(x: Tensor) -> Tensor:
    """x in its own dtype or in fp32, whichever is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
