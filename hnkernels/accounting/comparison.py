"""One layer's work, by the kernels and by eager PyTorch: counted, and by a model of the card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hnkernels.accounting.eager import Account, inference, training
from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.ops.explanation import Explanation, explain
from hnkernels.triton.cards import CARDS
from hnkernels.triton.cost import LAUNCH
from hnkernels.triton.launch import Launch

MODELLED = (torch.float16, torch.bfloat16)
"""What the rates of the cards are for."""


@dataclass(frozen=True)
class Comparison:
    """What a layer launches. Nothing of it is measured.

    Attributes:
        ours: by the kernels.
        eager: by PyTorch, an operation at a time, on the modules as A1111 has them.
        saved: bytes that each keeps for the backward pass besides the parameters: ours, eager's.
        seconds: modelled, by the card's data sheet: ours, eager's; ``None`` for fp32, for which it has no rate.
    """

    ours: Explanation
    eager: Account
    saved: tuple[int, int]
    seconds: tuple[float, float] | None


def compare(
    mlps: tuple[HypernetworkMLP, HypernetworkMLP],
    tokens: int,
    out_features: int,
    *,
    train: bool = False,
    dtype: torch.dtype = torch.float16,
    target: str = "sm_80",
) -> Comparison:
    """Counts what K and V of a layer take: the networks, and the projections, which are not trained.

    Args:
        mlps: for K and V.
        tokens: rows of the context, batch times tokens.
        out_features: n of the projections.
        train: a forward and a backward pass; else inference, where what can be computed once has been.
        dtype: of everything.
        target: see ``explain``.

    Raises:
        ValueError: as ``explain``.
    """
    ours = explain(*mlps, tokens, out_features, train, dtype=dtype, target=target)
    eager = _eager(mlps, tokens, out_features, train, dtype)
    seconds = None
    if dtype in MODELLED:
        seconds = modelled(ours.launches, target), modelled(eager.launches, target)
    return Comparison(ours, eager, (ours.saved_bytes, eager.saved), seconds)


def modelled(launches: Iterable[Launch], target: str) -> float:
    """Seconds by the roofline: each launch as long as its products at the card's matrix rate, or its bytes at the
    memory's bandwidth, whichever is longer, and what a launch costs. Less than any measured time."""
    card = CARDS[target]
    return sum(
        max(one.flops / card.matrix_rate, (one.bytes_read + one.bytes_written) / card.bandwidth) + LAUNCH
        for one in launches
    )


@torch.inference_mode(False)
@torch.enable_grad()
def _eager(
    mlps: tuple[HypernetworkMLP, HypernetworkMLP], tokens: int, out_features: int, train: bool, dtype: torch.dtype
) -> Account:
    with torch.device("meta"):
        copies = [HypernetworkMLP(mlp.dim, mlp.config).to(dtype).train(train) for mlp in mlps]
        x = torch.empty(tokens, mlps[0].dim, dtype=dtype, requires_grad=train)
        weights = [torch.empty(out_features, mlps[0].dim, dtype=dtype) for _ in mlps]

    def run() -> list[Tensor]:
        return [F.linear(mlp(x), weight) for mlp, weight in zip(copies, weights, strict=True)]

    if not train:
        return inference(run)
    parameters = [*(p for mlp in copies for p in mlp.parameters()), *weights]
    return training(run, [x], parameters)["forward + backward"]
