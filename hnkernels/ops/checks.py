"""The arguments of the operations: what does not fit is refused here, by what was given and what is accepted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hnkernels.errors import InputError
from hnkernels.ops import portable
from hnkernels.triton import support
from hnkernels.wording import shown

HIGHEST_RANK = 64

COMPUTED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that PyTorch computes in. Those of 8 bits and fewer only store."""

Scale = Tensor | float | None
"""[S], [G], or one number for all; ``None`` is 1."""


def check_call(
    context: Tensor,
    chains: dict[str, portable.Chain],
    projections: dict[str, tuple[Tensor, Tensor | None]],
    backend: str,
) -> None:
    support.check_backend(backend)
    check_context(context)
    for name, chain in chains.items():
        check_chain(name, chain, context)
    for suffix, (weight, bias) in projections.items():
        _check_projection(suffix, weight, bias, context)


def check_context(context: Tensor) -> None:
    if not isinstance(context, Tensor):
        raise InputError(f"context must be a tensor, not {type(context).__name__}")
    if context.ndim < 1 or not context.is_floating_point():
        raise InputError(
            f"context must be a floating-point tensor [..., d], not {describe(context)}; cast it with .float()"
        )
    check_computed("context", context)


def check_chain(name: str, chain: portable.Chain, context: Tensor) -> None:
    for mlp, m in chain:
        if not isinstance(m, Tensor) and not abs(m) <= torch.finfo(context.dtype).max:
            raise InputError(
                f"strength times multiplier of {name} must be a number that {context.dtype} holds, not {m}"
            )
        if mlp.dim != context.shape[-1]:
            raise InputError(
                f"{name} is for contexts of width {mlp.dim}, the context is {describe(context)}, width "
                f"{context.shape[-1]}"
            )
        weight = mlp.linear[0].weight
        if weight.device != context.device:
            raise InputError(
                f"{name} is on {weight.device}, the context on {context.device}; move one with .to(device)"
            )


def _check_projection(suffix: str, weight: Tensor, bias: Tensor | None, context: Tensor) -> None:
    width = context.shape[-1]
    for name, tensor in ((f"w_{suffix}", weight), (f"b_{suffix}", bias)):
        if not isinstance(tensor, Tensor) and not (tensor is None and name[0] == "b"):
            raise InputError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if weight.ndim != 2 or weight.shape[1] != width:
        raise InputError(
            f"w_{suffix} must be [n, {width}] for a context of width {width}, not {list(weight.shape)}"
            + ("; it looks transposed" if weight.ndim == 2 and weight.shape[0] == width else "")
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"b_{suffix} must be [{weight.shape[0]}] like w_{suffix}, not {list(bias.shape)}")
    for name, tensor in ((f"w_{suffix}", weight), (f"b_{suffix}", bias)):
        if tensor is None:
            continue
        check_dense(name, tensor)
        if tensor.device != context.device:
            raise InputError(
                f"{name} is on {tensor.device}, the context on {context.device}; move one with .to(device)"
            )
        if tensor.dtype != context.dtype and not torch.is_autocast_enabled(context.device.type):
            raise InputError(
                f"{name} is {tensor.dtype} and the context {context.dtype}; cast one of them, or run under "
                "torch.autocast"
            )


def check_weight(x: Tensor, weight: Tensor, bias: Tensor | None, weights: str = "", biases: str = "") -> None:
    """Refuses a weight and bias that do not fit x; their names end so."""
    names = {f"weight{weights}": weight, f"bias{biases}": bias}
    for name, t in names.items():
        if t is None and name.startswith("bias"):
            continue
        if not isinstance(t, Tensor) or not t.is_floating_point():
            raise InputError(f"{name} must be a floating-point tensor, not {describe(t)}")
        check_dense(name, t)
        check_same_device(name, t, x)
        if t.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise InputError(f"{name} is {t.dtype} and x {x.dtype}; cast one of them, or run under torch.autocast")
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise InputError(
            f"x must be [S, ..., d] and weight{weights} [n, d], not {list(x.shape)} and {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"bias{biases} must be [{weight.shape[0]}] like the weight, not {list(bias.shape)}")


def check_factors(
    x: Tensor, n: int, a: Tensor, b: Tensor, scale: Scale, index: Tensor | None, number: str = ""
) -> None:
    """Refuses factors, scale and index that do not fit x and a linear of n outputs; their names end in ``number``."""
    d, samples = x.shape[-1], x.shape[0]
    for name, t in {f"a{number}": a, f"b{number}": b}.items():
        if not isinstance(t, Tensor) or not t.is_floating_point():
            raise InputError(f"{name} must be a floating-point tensor, not {describe(t)}")
        check_dense(name, t)
        check_same_device(name, t, x)
    if a.ndim != 3 or b.ndim != 3 or a.shape[0] != b.shape[0] or a.shape[1] != b.shape[2]:
        given = f"{list(a.shape)} and {list(b.shape)}"
        raise InputError(f"a{number} must be [G, r, {d}] and b{number} [G, {n}, r], not {given}")
    sets, rank = a.shape[:2]
    if a.shape[2] != d or b.shape[1] != n:
        raise InputError(
            f"a{number} must be [{sets}, {rank}, {d}] and b{number} [{sets}, {n}, {rank}] for a weight [{n}, {d}], not "
            f"{list(a.shape)} and {list(b.shape)}"
        )
    if not 1 <= rank <= min(n, d, HIGHEST_RANK):
        raise InputError(f"the rank must be between 1 and {min(n, d, HIGHEST_RANK)} for this weight, not {rank}")
    if index is not None:
        if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32) or index.shape != (samples,):
            raise InputError(f"index must be [{samples}] integers below {sets}, not {describe(index)}")
        seen = index.device.type == "cpu" and not torch.compiler.is_compiling() and samples  # elsewhere it would wait
        if seen and not 0 <= int(index.min()) <= int(index.max()) < sets:
            raise InputError(f"index must be [{samples}] integers below {sets}, not {index.tolist()}")
    elif sets == 0 or samples % sets:
        raise InputError(
            f"a batch of {samples} is not a multiple of the {sets} sets of factors; give an index that says which set "
            "serves which sample"
        )
    if scale is None:
        return
    if isinstance(scale, (int, float)) and not isinstance(scale, bool):
        if not abs(scale) <= torch.finfo(x.dtype).max:
            raise InputError(f"scale must be a number that {x.dtype} holds, not {shown(scale)}")
        return
    if not (isinstance(scale, Tensor) and scale.is_floating_point() and scale.shape in ((samples,), (sets,))):
        raise InputError(f"scale must be a number, [{samples}] or [{sets}], not {describe(scale)}")
    check_dense("scale", scale)
    check_same_device("scale", scale, x)


def check_computed(name: str, t: Tensor) -> None:
    """Refuses a floating-point tensor whose dtype only stores, or that is sparse."""
    check_dense(name, t)
    if t.dtype not in COMPUTED:
        raise InputError(f"{name} is {t.dtype}, in which PyTorch does not compute; cast it with .half() or .float()")


def check_dense(name: str, t: Tensor) -> None:
    """Refuses a sparse tensor."""
    if t.layout is not torch.strided:
        raise InputError(f"{name} is {str(t.layout).removeprefix('torch.')}; make it dense with .to_dense()")


def is_real(t: Tensor) -> bool:
    """Whether t holds real numbers to compute with."""
    return t.dtype in COMPUTED or not (t.is_floating_point() or t.is_complex() or t.is_quantized)


def check_same_device(name: str, t: Tensor, x: Tensor) -> None:
    if t.device != x.device:
        raise InputError(f"{name} is on {t.device}, x on {x.device}; move one with .to(device)")


def describe(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else shown(value)
