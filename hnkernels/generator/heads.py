"""From the features of a layer to its low-rank factors: heads shared by all layers of one shape.

A is drawn by the rules of Chang, Flokas and Lipson ("Principled Weight Initialization for Hypernetworks", ICLR 2020):
the head's own variance is such that the variance of the *generated* A is what a layer x ↦ A x should have, 1/d to keep
that of activations (``hyperfan-in``), 1/r to keep that of gradients (``hyperfan-out``), or their harmonic mean
2/(d + r) (``hyperfan``). B starts at exactly 0: ΔW = B A is 0, and its gradient with respect to B is not.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnkernels.generator.targets import Shape

_VARIANCES = {
    "hyperfan-in": lambda d, rank: 1 / d,
    "hyperfan-out": lambda d, rank: 1 / rank,
    "hyperfan": lambda d, rank: 2 / (d + rank),
}

INITS = tuple(_VARIANCES)


def generated_variance(init: str, shape: Shape) -> float:
    """The variance of the entries of a generated A [r, d] at the start."""
    _, d, rank = shape
    return _VARIANCES[init](d, rank)


class LoraHead(nn.Module):
    """Both factors linear in the features.

    Args:
        hidden_dim: H.
        shape: n, d, r.
        init: one of ``INITS``.
    """

    def __init__(self, hidden_dim: int, shape: Shape, init: str):
        super().__init__()
        n, d, rank = shape
        self.rank = rank
        # Features have a root mean square of 1, so that each entry of A has H times the variance of its weights.
        std = math.sqrt(generated_variance(init, shape) / hidden_dim)
        self.to_a = nn.Parameter(torch.empty(rank * d, hidden_dim).normal_(std=std))
        self.to_b = nn.Parameter(torch.zeros(n * rank, hidden_dim))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[layers, B, H] → a [layers, B, r, d] and b [layers, B, n, r]."""
        a = F.linear(features, self.to_a).unflatten(-1, (self.rank, -1))
        return a, F.linear(features, self.to_b).unflatten(-1, (-1, self.rank))


class BasisHead(nn.Module):
    """Mixtures of K learned factors, A and B each, whose coefficients are linear in the features.

    Args:
        hidden_dim: H.
        shape: n, d, r.
        init: one of ``INITS``.
        bases: K.
    """

    def __init__(self, hidden_dim: int, shape: Shape, init: str, bases: int):
        super().__init__()
        n, d, rank = shape
        self.rank = rank
        # Coefficients of variance 1/K, so that A has the variance of its bases.
        self.mix = nn.Parameter(torch.empty(2 * bases, hidden_dim).normal_(std=math.sqrt(1 / (bases * hidden_dim))))
        self.bases_a = nn.Parameter(
            torch.empty(bases, rank * d).normal_(std=math.sqrt(generated_variance(init, shape)))
        )
        self.bases_b = nn.Parameter(torch.zeros(bases, n * rank))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[layers, B, H] → a [layers, B, r, d] and b [layers, B, n, r]."""
        mix_a, mix_b = F.linear(features, self.mix).chunk(2, dim=-1)  # [layers, B, K]
        a = (mix_a @ self.bases_a).unflatten(-1, (self.rank, -1))
        return a, (mix_b @ self.bases_b).unflatten(-1, (-1, self.rank))


class DenseHead(nn.Module):
    """ΔW itself, linear in the features, in the form of factors: the smaller side's is the identity.

    Args:
        hidden_dim: H.
        shape: n, d, r with r = min(n, d).
    """

    def __init__(self, hidden_dim: int, shape: Shape):
        super().__init__()
        self.n, self.d, self.rank = shape
        self.to_delta = nn.Parameter(torch.zeros(self.n * self.d, hidden_dim))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[layers, B, H] → a [layers, B, r, d] and b [layers, B, n, r]."""
        delta = F.linear(features, self.to_delta).unflatten(-1, (self.n, self.d))
        eye = torch.eye(self.rank, dtype=delta.dtype, device=delta.device)
        eye = eye.expand(*delta.shape[:2], -1, -1).contiguous()
        return (delta, eye) if self.n == self.rank else (eye, delta)
