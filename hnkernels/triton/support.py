"""Whether the Triton kernels can do what is asked. Needs no Triton itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from hnkernels.errors import InputError
from hnkernels.network.activations import resolve
from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.triton.target import interpreting, pretended
from hnkernels.wording import shown

LEAST_CAPABILITY = (8, 0)
WIDEST_ROW = 32768
"""A LayerNorm's row is held in registers, so its width has a limit."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What the kernels compute in."""


BACKENDS = ("auto", "triton", "portable")

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Whether Triton can be imported."""


def why_not(context: Tensor, mlps: Sequence[HypernetworkMLP]) -> str | None:
    """Why the kernels cannot run for this context and these MLPs; ``None`` if they can."""
    reason = _device_fault(context.device) or _dtype_fault(context)
    for mlp in mlps:
        reason = reason or mlp_fault(mlp)
    return reason


def check_backend(backend: str) -> None:
    """Refuses a backend that is none.

    Raises:
        ValueError: names what is accepted.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend {shown(backend)} is unknown; accepted are {', '.join(BACKENDS)}")


def takes_triton(backend: str, context: Tensor, mlps: Sequence[HypernetworkMLP] = ()) -> bool:
    """Whether the Triton backend is to run.

    Raises:
        ValueError: it was asked for and cannot; says why.
    """
    if backend == "portable":
        return False
    reason = why_not(context, mlps)
    if reason is not None and backend == "triton":
        raise InputError(f"backend 'triton' cannot run here: {reason}; use 'auto' or 'portable'")
    return reason is None


def _device_fault(device: torch.device) -> str | None:
    if not HAS_TRITON:
        return "Triton is not installed"
    if device.type == "cpu":
        if interpreting():
            return None
        if not torch.compiler.is_compiling() and pretended() is not None:  # nobody compiles for what is not there
            return None
        return "CPU tensors run in Triton's interpreter only; set TRITON_INTERPRET=1 for that"
    if interpreting():
        return "TRITON_INTERPRET=1 is set, and the interpreter takes CPU tensors"
    if device.type == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
            return f"{torch.cuda.get_device_name(device)} has a compute capability below 8.0"
        return None
    return None if device.type == "xpu" else f"Triton has no backend for {device.type} tensors"


def compute_dtype(context: Tensor) -> torch.dtype:
    """What products are computed in: autocast's dtype where it is on, else the context's."""
    device = context.device.type
    if device != "meta" and torch.is_autocast_enabled(device):  # autocast does not know the meta device
        return torch.get_autocast_dtype(device)
    return context.dtype


def _dtype_fault(context: Tensor) -> str | None:
    if context.dtype in DTYPES and compute_dtype(context) in DTYPES:
        return None
    return f"the kernels compute in float16, bfloat16 and float32, not {context.dtype}"


def mlp_fault(mlp: HypernetworkMLP) -> str | None:
    """Why the kernels cannot run this MLP, whatever the device; ``None`` if they can."""
    config = mlp.config
    row = resolve(config.activation, config.allow_legacy_activations)
    if row is not None and row.device is None and any(layer.activation is not None for layer in mlp.layers()):
        return f"activation {config.activation!r} has no device code"
    if any(layer.norm is not None and layer.linear.out_features > WIDEST_ROW for layer in mlp.layers()):
        return f"a LayerNorm is wider than {WIDEST_ROW}"
    return None
