"""Algebra done once, not at every step: affine MLPs folded into the projection after them.

Without activation, LayerNorm and active dropout an MLP is affine, ``x ↦ x + m·(A x + a)``, and so is a chain of them.
The projection of its output is then a projection of x itself, with ``W' = W (I + m·A)`` and ``b' = b + m·W a``:
exact, and free at every later step. A1111's default network and every file of the first days are of this kind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hnkernels.errors import InputError
from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.ops.portable import Chain


def is_affine(mlp: HypernetworkMLP) -> bool:
    """Whether the MLP, in its present mode, is an affine map."""
    return all(
        layer.activation is None and layer.norm is None and not (layer.dropout > 0 and mlp.training)
        for layer in mlp.layers()
    )


@torch.no_grad()
def affine_map(mlp: HypernetworkMLP) -> tuple[Tensor, Tensor]:
    """A [d, d] and a [d] of ``f(x) = A x + a``, the MLP without its residual, in float64 where the device has it.

    Raises:
        ValueError: the MLP is not affine.
    """
    if not is_affine(mlp):
        raise InputError(
            f"only an affine MLP can be folded; this one has activation {mlp.config.activation!r}, "
            f"layer_norm={mlp.config.layer_norm}, dropout {mlp.config.dropout_structure} "
            f"and is in {'training' if mlp.training else 'eval'} mode"
        )
    first, *rest = (layer.linear for layer in mlp.layers())
    dtype = torch.float32 if first.weight.device.type == "mps" else torch.float64
    matrix, vector = first.weight.to(dtype), first.bias.to(dtype)
    for linear in rest:
        weight = linear.weight.to(dtype)
        matrix, vector = weight @ matrix, weight @ vector + linear.bias.to(dtype)
    return matrix, vector


@torch.no_grad()
def chain_map(chain: Chain) -> tuple[Tensor, Tensor] | None:
    """A [d, d] and a [d] of ``chain(x) = x + A x + a``, in the dtype of ``affine_map``.

    Args:
        chain: affine MLPs of width d with their multipliers, in order of application.

    Returns:
        ``None`` if no MLP with a multiplier other than 0 is there: the chain is the identity.

    Raises:
        ValueError: an MLP that counts is not affine.
    """
    composed: tuple[Tensor, Tensor] | None = None
    for mlp, m in chain:
        if m == 0:
            continue
        matrix, vector = affine_map(mlp)
        if composed is None:
            composed = m * matrix, m * vector
        else:
            before, shift = composed
            composed = before + m * (matrix + matrix @ before), shift + m * (matrix @ shift + vector)
    return composed


@torch.no_grad()
def fold_projection(weight: Tensor, bias: Tensor | None, chain: Chain) -> tuple[Tensor, Tensor | None]:
    """The projection that does the work of ``chain`` followed by ``(weight, bias)``.

    Args:
        weight: [n, d].
        bias: [n] or ``None``.
        chain: affine MLPs of width d with their multipliers, in order of application.

    Returns:
        Weight [n, d] and bias [n] in weight's dtype. The bias stays ``None`` if there was none and none arises.

    Raises:
        ValueError: an MLP of the chain is not affine.
    """
    composed = chain_map(chain)
    if composed is None:
        return weight, bias
    matrix, vector = composed
    wide = weight.to(matrix.dtype)
    folded, shift = wide + wide @ matrix, wide @ vector
    if bias is None and not (shift.is_meta or shift.any()):
        return folded.to(weight.dtype), None
    offset = shift if bias is None else bias.to(matrix.dtype) + shift
    return folded.to(weight.dtype), offset.to(weight.dtype)
