"""What the keys and shapes of one MLP's state dict say about its sub-layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum

import torch
from torch import Tensor, nn

from hnkernels.checkpoint.errors import Fault, brief

StateDict = dict[str, Tensor]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_KEY = re.compile(r"linear\.(0|[1-9]\d{0,5})\.(weight|bias)")
_OTHER_FILE = "this is not a hypernetwork file, or one of a program that changed the format; convert it there"
_RETRAIN = "use an earlier snapshot of the training"
_RESAVE = "save it again with the program that made it"


class Kind(Enum):
    """A sub-layer that has parameters."""

    LINEAR = "Linear"
    NORM = "LayerNorm"
    SCALAR = "PReLU"


def check_tensor(where: str, tensor: object) -> Tensor:
    """``tensor`` itself, if it is an ordinary CPU tensor that holds all the elements it claims.

    Raises:
        Fault: it is anything else, for example one number expanded to a billion.
    """
    if type(tensor) not in (Tensor, nn.Parameter):
        raise Fault(f"{where} is {brief(tensor)}, not a tensor", _OTHER_FILE)
    assert isinstance(tensor, Tensor)
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise Fault(f"{where} is a sparse, quantized or data-less tensor", _RESAVE)
    claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > held:
        raise Fault(f"{where} claims {claimed} bytes and holds {held}", _RESAVE)
    return tensor.detach()


def check_finite(where: str, tensor: Tensor) -> None:
    """Refuses NaN and infinities.

    Raises:
        Fault: there is one.
    """
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise Fault(f"{where} holds NaN or infinite values", _RETRAIN)


def check_state_dict(where: str, state: object) -> StateDict:
    """``state`` with its entries checked: keys ``linear.<i>.weight|bias``, finite floating-point tensors.

    Raises:
        Fault: it is not a dict, or an entry is anything else.
    """
    if not isinstance(state, Mapping):
        raise Fault(f"{where} is {brief(state)}, not a state dict", _OTHER_FILE)
    checked: StateDict = {}
    for key, value in state.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise Fault(f"{where} has the foreign key {brief(key)}", _OTHER_FILE)
        tensor = check_tensor(f"{where} {key}", value)
        if tensor.dtype not in DTYPES:
            raise Fault(f"{where} {key} is {tensor.dtype}, not a floating-point type that can be trained", _RESAVE)
        check_finite(f"{where} {key}", tensor)
        checked[key] = tensor
    return checked


def kinds(where: str, state: StateDict) -> dict[int, Kind]:
    """The sub-layers with parameters, by their index, ascending. Indices without parameters are left out.

    Raises:
        Fault: weight and bias at some index are of no known kind.
    """
    found: dict[int, Kind] = {}
    for index in sorted({int(key.split(".")[1]) for key in state}):
        weight, bias = state.get(f"linear.{index}.weight"), state.get(f"linear.{index}.bias")
        shapes = tuple(None if t is None else tuple(t.shape) for t in (weight, bias))
        match shapes:
            case ((rows, _), (length,)) if rows == length:
                found[index] = Kind.LINEAR
            case ((width,), (length,)) if width == length:
                found[index] = Kind.NORM
            case ((1,), None):
                found[index] = Kind.SCALAR
            case _:
                raise Fault(
                    f"{where} linear.{index} has weight {shapes[0]} and bias {shapes[1]}, "
                    "which is neither a Linear nor a LayerNorm nor a PReLU",
                    _OTHER_FILE,
                )
    return found


def check_linears(where: str, dim: int, structure: Sequence[float], state: StateDict) -> None:
    """Compares every linear with the layer structure, before anything of that size is built.

    Raises:
        Fault: their number or a shape differs.
    """
    weights = [state[f"linear.{i}.weight"] for i, kind in kinds(where, state).items() if kind is Kind.LINEAR]
    if len(weights) != len(structure) - 1:
        raise Fault(
            f"{where} has {len(weights)} linear layers, its layer_structure of {len(structure)} entries means "
            f"{len(structure) - 1}",
            _RESAVE,
        )
    for number, weight in enumerate(weights):
        if tuple(weight.shape) != (_units(dim, structure[number + 1]), _units(dim, structure[number])):
            raise Fault(
                f"{where} linear layer {number} is {tuple(weight.shape)}, which does not follow from width {dim} and "
                f"layer_structure {brief(structure[number])} → {brief(structure[number + 1])}",
                _RESAVE,
            )


def _units(dim: int, factor: float) -> int:
    try:
        return int(dim * factor)
    except OverflowError:  # the product is infinite for an absurd factor
        return -1
