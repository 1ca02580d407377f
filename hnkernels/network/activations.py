"""The one table of activations that hypernetwork files may name.

Each row says how the activation is built, how the portable backend may apply it in place, and under which name the
Triton kernels know it. Names follow
AUTOMATIC1111: six of its own (``swish`` is Hardswish, as there), then every class of
``torch.nn.modules.activation`` under its lower-cased name with default arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnkernels.errors import InputError
from hnkernels.wording import shown


@dataclass(frozen=True)
class Activation:
    """One row of the table.

    Attributes:
        name: the name in files and in ``Hypernetwork(activation=...)``.
        build: makes the module.
        inplace: overwrites its argument with the result; ``None`` where torch has no such form.
        inplace_in_training: also while a graph is recorded, because the gradient follows from the output as exactly
            as from the input. (elu, celu and selu allow it too, but near their lower bound the rounded output has
            lost the gradient.)
        onednn: oneDNN's name, for GEMMs that apply it in their epilogue.
        device: its name in ``hnkernels.triton.kernels.activations``; ``None`` where there is no device code, because
            it is random (rrelu) or not pointwise. The portable backend takes those.
        legacy: mixes the items of a batch (the softmax family without a dim); built only when asked for by flag.
    """

    name: str
    build: Callable[[], nn.Module]
    inplace: Callable[[Tensor], Tensor] | None = None
    inplace_in_training: bool = False
    onednn: str | None = None
    device: str | None = None
    legacy: bool = False


def _legacy(cls: type[nn.Module]) -> Callable[[], nn.Module]:
    # A1111 builds these without a dim; for its 3-D contexts torch then picks dim 0, the batch.
    return lambda: cls(dim=0)


_ROWS = [
    Activation("celu", nn.CELU, torch.celu_, device="elu"),
    Activation("elu", nn.ELU, F.elu_, device="elu"),
    Activation("gelu", nn.GELU, device="gelu"),
    Activation("hardshrink", nn.Hardshrink, device="hardshrink"),
    Activation("hardsigmoid", nn.Hardsigmoid, lambda x: F.hardsigmoid(x, inplace=True), device="hardsigmoid"),
    Activation(
        "hardswish", nn.Hardswish, lambda x: F.hardswish(x, inplace=True), onednn="hardswish", device="hardswish"
    ),
    Activation("hardtanh", nn.Hardtanh, F.hardtanh_, True, device="hardtanh"),
    Activation("leakyrelu", nn.LeakyReLU, F.leaky_relu_, True, device="leakyrelu"),
    Activation("logsigmoid", nn.LogSigmoid, device="logsigmoid"),
    Activation("mish", nn.Mish, lambda x: F.mish(x, inplace=True), device="mish"),
    Activation("prelu", nn.PReLU, device="prelu"),
    Activation("relu", nn.ReLU, torch.relu_, True, onednn="relu", device="relu"),
    Activation("relu6", nn.ReLU6, lambda x: F.relu6(x, inplace=True), True, device="relu6"),
    Activation("rrelu", nn.RReLU),
    Activation("selu", nn.SELU, torch.selu_, device="selu"),
    Activation("sigmoid", nn.Sigmoid, torch.sigmoid_, True, onednn="sigmoid", device="sigmoid"),
    Activation("silu", nn.SiLU, lambda x: F.silu(x, inplace=True), onednn="swish", device="silu"),
    Activation("softplus", nn.Softplus, device="softplus"),
    Activation("softshrink", nn.Softshrink, device="softshrink"),
    Activation("softsign", nn.Softsign, device="softsign"),
    Activation("swish", nn.Hardswish, lambda x: F.hardswish(x, inplace=True), onednn="hardswish", device="hardswish"),
    Activation("tanh", nn.Tanh, torch.tanh_, True, onednn="tanh", device="tanh"),
    Activation("tanhshrink", nn.Tanhshrink, device="tanhshrink"),
    Activation("logsoftmax", _legacy(nn.LogSoftmax), legacy=True),
    Activation("softmax", _legacy(nn.Softmax), legacy=True),
    Activation("softmax2d", _legacy(nn.Softmax), legacy=True),  # over dim -3, which is dim 0 of a 3-D context
    Activation("softmin", _legacy(nn.Softmin), legacy=True),
]

ACTIVATIONS: dict[str, Activation] = {row.name: row for row in _ROWS}

_UNBUILDABLE = {
    "glu": "it halves the width, so the next linear does not fit",
    "multiheadattention": "it cannot be built without arguments",
    "threshold": "it cannot be built without arguments",
}


def resolve(name: str | None, allow_legacy: bool = False) -> Activation | None:
    """The table's row for ``name``; ``None`` for the identity (``None`` or ``"linear"``).

    Raises:
        ValueError: the name is unknown, cannot be built, or is of the softmax family without ``allow_legacy``.
    """
    if name is None or name == "linear":
        return None
    if not isinstance(name, str):
        raise InputError(f"activation must be a name or None, not {type(name).__name__}")
    row = ACTIVATIONS.get(name)
    if row is None:
        why = _UNBUILDABLE.get(name)
        reason = f"cannot be used in a hypernetwork: {why}" if why else "is unknown"
        usable = ", ".join(["linear", *(r.name for r in _ROWS if not r.legacy)])
        raise InputError(f"activation {shown(name)} {reason}; accepted are {usable}")
    if row.legacy and not allow_legacy:
        raise InputError(
            f"activation {name!r} has no dim in the A1111 format and mixes the items of a batch; "
            "pass allow_legacy_activations=True to use such a file anyway"
        )
    return row
