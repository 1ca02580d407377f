"""The optimizer's state, which A1111 keeps beside a hypernetwork: ``style.pt.optim`` for ``style.pt``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hnkernels.checkpoint.archive import write_torch_file
from hnkernels.checkpoint.atomic import replacing
from hnkernels.checkpoint.errors import CheckpointError, Fault, brief, naming
from hnkernels.checkpoint.files import extension_of, read_record
from hnkernels.checkpoint.metadata import Metadata
from hnkernels.checkpoint.reading import check_regular, open_regular, read_torch_file
from hnkernels.checkpoint.sublayers import check_finite, check_tensor
from hnkernels.network.hypernetwork import Hypernetwork

_HASH_DIGITS = 10
_LEGACY_DIGITS = 8
_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000
_DELETE = "delete it to train on with a fresh optimizer"
_LIKE_PARAMETER = {
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "acc_delta", "sum"),
}
"""What the optimizers of PyTorch keep in the shape of a parameter; they do not check it themselves."""
_NOT_NEGATIVE = {"step", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"}


class OptimizerState(NamedTuple):
    """What a side file holds.

    Attributes:
        optimizer_name: class name in ``torch.optim``.
        state_dict: for ``load_state_dict`` of an optimizer over ``net.parameters()`` of the loaded network.
    """

    optimizer_name: str
    state_dict: dict[str, Any]


def side_file(path: str | os.PathLike[str]) -> Path:
    """``style.pt`` → ``style.pt.optim``.

    Raises:
        CheckpointError: the name does not end in ``.pt``; only this format has a side file.
    """
    if extension_of(path) != ".pt":
        raise CheckpointError(f"{os.fspath(path)}: only .pt files have an optimizer file beside them; save as .pt")
    return Path(os.fspath(path) + ".optim")


def short_hash(path: str | os.PathLike[str]) -> str:
    """The hash by which A1111 knows a file: the first 10 hex digits of the SHA-256 of its bytes.

    Raises:
        CheckpointError: it cannot be read, or is empty.
    """
    with naming(path):
        return _hashes(Path(path))[0]


def load_optimizer_state(path: str | os.PathLike[str]) -> OptimizerState | None:
    """The optimizer state that belongs to a ``.pt`` file.

    A1111 numbers parameters in the file's order of widths, a ``Hypernetwork`` in ascending order; the state is
    renumbered to the latter.

    Args:
        path: the hypernetwork, not the side file.

    Returns:
        The state, or ``None`` when there is no side file, it holds no state, or its hash names other weights (as after
        renaming a snapshot; A1111 ignores such a file too). The hash is the first 10 hex digits of the SHA-256 of the
        ``.pt`` file; the 8 digits of old side files cover its bytes 0x100000 to 0x10ffff only, and count only if the
        file has such bytes.

    Raises:
        CheckpointError: either file is damaged or hostile, or they do not fit each other.
    """
    side = side_file(path)
    with naming(path):
        check_regular(Path(path))
    with naming(side):
        if not side.exists():
            return None
        content = read_torch_file(side)
        if not isinstance(content, Mapping):
            raise Fault(f"holds {brief(content)}, not a dict", _DELETE)
        meta = Metadata(content)
        name, stated = meta.text("optimizer_name", "AdamW"), meta.optional_text("hash")
        state = content.get("optimizer_state_dict")
    with naming(path):
        if state is None or stated not in _hashes(Path(path)):
            return None
    # Which activations are acceptable was settled when the network was loaded; only the order of widths matters here.
    pairs = read_record(path, allow_legacy_activations=True).pairs
    with naming(side):
        return OptimizerState(name, _checked(state, {width: len(k) + len(v) for width, (k, v) in pairs.items()}))


def save_optimizer_state(
    path: str | os.PathLike[str], optimizer: torch.optim.Optimizer, net: Hypernetwork | None = None
) -> None:
    """Writes the side file of a ``.pt`` file that has just been saved.

    Args:
        path: the hypernetwork, not the side file.
        optimizer: over ``net.parameters()`` of that network, in one group; or, with ``net``, in any groups.
        net: the network. The state is written as one group, which is all that A1111 reads, with the options of the
            group that has most parameters.

    Raises:
        CheckpointError: there is no such ``.pt`` file, the side file cannot be written, or the optimizer has other
            parameters than the network.
    """
    side = side_file(path)
    with naming(path):
        digest = _hashes(Path(path))[0]
    with naming(side), torch.no_grad():
        state = optimizer.state_dict() if net is None else _in_one_group(optimizer, net)
        content = {
            "optimizer_name": type(optimizer).__name__,
            "hash": digest,
            "optimizer_state_dict": _plain(state),
        }
        with replacing(side) as file:
            write_torch_file(content, file)


def restore_optimizer_state(path: str | os.PathLike[str], net: Hypernetwork, optimizer: torch.optim.Optimizer) -> bool:
    """Puts what the side file of a ``.pt`` file holds into an optimizer, so that it goes on where that one stopped.

    Moments and counts of steps are taken over; learning rates and the other options stay the optimizer's own.

    Args:
        path: the hypernetwork, not the side file.
        net: what was loaded from it.
        optimizer: over parameters of ``net``, in any groups.

    Returns:
        Whether there was a state that belongs to the file; see ``load_optimizer_state``.

    Raises:
        CheckpointError: the state is damaged, of another class of optimizer, or does not fit the network; the optimizer
            is as before.
    """
    loaded = load_optimizer_state(path)
    if loaded is None:
        return False
    with naming(side_file(path)):
        if loaded.optimizer_name != type(optimizer).__name__:
            raise Fault(
                f"holds the state of {brief(loaded.optimizer_name)}, and the optimizer is {type(optimizer).__name__}",
                f"train on with that one, or {_DELETE}",
            )
        state = loaded.state_dict["state"]
        parameters = dict(enumerate(net.parameters()))
        for index, entries in state.items():
            if index not in parameters:
                raise Fault(f"has more than the {len(parameters)} parameters of the network", "load that from the file")
            _check_entries(f"of parameter {index}", entries, parameters[index], optimizer)
        indices = _indices(optimizer, net)
        moved = {own: state[index] for own, index in enumerate(indices) if index in state}
        optimizer.load_state_dict({"state": moved, "param_groups": optimizer.state_dict()["param_groups"]})
    return True


def _check_entries(where: str, entries: Mapping[Any, Any], parameter: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Refuses what PyTorch would take up, and fail over in a later step."""
    needed: set[str] = set()
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        amsgrad = any(group["amsgrad"] for group in optimizer.param_groups)
        needed = {"step", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])}
    for key in sorted(needed - entries.keys()):
        raise Fault(f"has no {key} {where}", _DELETE)
    for key, value in entries.items():
        shape = value.shape if isinstance(value, Tensor) else torch.Size()
        expected = {"step": torch.Size()}.get(key, parameter.shape if key in _LIKE_PARAMETER else shape)
        optional = value is None and key not in needed
        if not (isinstance(value, (Tensor, int, float)) and shape == expected) and not optional:
            found = list(shape) if isinstance(value, Tensor) else brief(value)
            raise Fault(f"has {found} for {brief(key)} {where}, which must be {list(expected)}", _DELETE)
        number = torch.as_tensor(0 if value is None else value)
        if key in _NOT_NEGATIVE and (
            number.dtype in (torch.bool, torch.complex64, torch.complex128) or number.lt(0).any()
        ):
            raise Fault(f"has {brief(key)} {where} with values that are not numbers >= 0", _DELETE)


def _in_one_group(optimizer: torch.optim.Optimizer, net: Hypernetwork) -> dict[str, Any]:
    """The optimizer's state dict as if it had one group over ``net.parameters()``."""
    indices, state = _indices(optimizer, net), optimizer.state_dict()
    options = max(state["param_groups"], key=lambda group: len(group["params"]))
    moved = {indices[own]: entries for own, entries in state["state"].items()}
    count = sum(1 for _ in net.parameters())
    return {"state": dict(sorted(moved.items())), "param_groups": [{**options, "params": list(range(count))}]}


def _indices(optimizer: torch.optim.Optimizer, net: Hypernetwork) -> list[int]:
    """For every parameter of the optimizer, in its order, its number in ``net.parameters()``."""
    numbers = {id(parameter): number for number, parameter in enumerate(net.parameters())}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not all(id(parameter) in numbers for parameter in parameters):
        raise Fault("cannot hold the state of an optimizer of other parameters", "give the network that it trains")
    return [numbers[id(parameter)] for parameter in parameters]


def _hashes(path: Path) -> tuple[str, ...]:
    """The hash of a file and, if it is long enough to have one, its legacy hash."""
    with open_regular(path) as file:
        whole = hashlib.sha256()
        while block := file.read(1 << 20):
            whole.update(block)
        file.seek(_LEGACY_START)
        part = file.read(_LEGACY_LENGTH)
    current = whole.hexdigest()[:_HASH_DIGITS]
    return (current, hashlib.sha256(part).hexdigest()[:_LEGACY_DIGITS]) if part else (current,)


def _checked(state: Any, counts: dict[int, int]) -> dict[str, Any]:
    """``state`` in ascending order of widths; ``counts`` gives the parameters per width in the file's order."""
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    values = state.get("state") if isinstance(state, Mapping) else None
    if not isinstance(groups, list) or not isinstance(values, Mapping) or not all(_is_group(g) for g in groups):
        raise Fault("holds no optimizer state dict with state and param_groups", _DELETE)
    expected = range(sum(counts.values()))
    if [index for group in groups for index in group["params"]] != list(expected):
        raise Fault(f"does not number the {len(expected)} parameters of the hypernetwork", _DELETE)
    for index, entries in values.items():
        if type(index) is not int or index not in expected or not isinstance(entries, Mapping):
            raise Fault(f"has the foreign entry {brief(index)} in its state", _DELETE)
        for key, value in entries.items():
            if isinstance(value, Tensor):
                where = f"state of parameter {index}, {brief(key)}"
                check_finite(where, check_tensor(where, value))
    moves = _moves(counts)
    if len(groups) > 1 and moves != dict(enumerate(expected)):
        raise Fault("has several parameter groups over widths in another order than ascending", _DELETE)
    reordered = {
        moves[index]: {key: _own(value) for key, value in entries.items()} for index, entries in values.items()
    }
    return {"state": dict(sorted(reordered.items())), "param_groups": [dict(group) for group in groups]}


def _own(value: Any) -> Any:
    """A tensor whose elements each have a place of their own, which an optimizer writes to."""
    return value.contiguous() if isinstance(value, Tensor) else value


def _is_group(group: object) -> bool:
    params = group.get("params") if isinstance(group, Mapping) else None
    return isinstance(params, (list, tuple)) and all(type(index) is int for index in params)


def _moves(counts: dict[int, int]) -> dict[int, int]:
    """Index of a parameter in the file's order of widths → its index in ascending order."""
    starts: dict[int, int] = {}
    start = 0
    for width in sorted(counts):
        starts[width] = start
        start += counts[width]
    targets: Iterable[int] = (starts[width] + i for width, count in counts.items() for i in range(count))
    return dict(enumerate(targets))


def _plain(value: Any) -> Any:
    """``value`` with tensors as CPU copies of their own, so that views do not drag their whole storage along."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [_plain(entry) for entry in value]
        return entries if isinstance(value, list) else tuple(entries)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # numpy's numbers would be refused when the file is read
    if value is None:
        return None
    raise Fault(f"cannot hold {brief(value)}", "use an optimizer whose state is tensors, numbers and strings")
