"""Gradients of generated weights from a UNet whose blocks run backward in passes of their own.

kohya's SDXL UNet checkpoints its blocks with ``use_reentrant=True``: each block's backward pass is a whole one, and all
of them would go through the network that generated the weights, whose graph is there for one pass. So the blocks get
leaves, in which their gradients add up, and a function at the UNet's input, which is the last that a backward pass
reaches, hands the sums on to the generated weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hnkernels.generator import GeneratedWeights


def with_leaves(sample: Tensor, weights: GeneratedWeights) -> tuple[Tensor, GeneratedWeights]:
    """What the UNet is to be called with, and the weights that are to act in that call.

    Args:
        sample: the UNet's input, which everything in it depends on.
        weights: generated while gradients are recorded.

    Returns:
        The same values: the sample, through which the gradients of the leaves reach ``weights``; and the leaves.
    """
    generated: list[Tensor] = []
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        generated.append(tensor)
        leaves.append(tensor.detach().requires_grad_())
        return leaves[-1]

    acting = weights.mapped(leaf)
    return _HandOn.apply(sample, leaves, *generated), acting


class _HandOn(torch.autograd.Function):
    """The sample as it is; backward, the gradients that have come together in the leaves."""

    @staticmethod
    def forward(ctx: Any, sample: Tensor, leaves: list[Tensor], *generated: Tensor) -> Tensor:
        ctx.leaves = leaves
        return sample.view_as(sample)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [leaf.grad for leaf in ctx.leaves]
        for leaf in ctx.leaves:
            leaf.grad = None  # a second pass over a retained graph adds up anew
        return grad, None, *gradients
