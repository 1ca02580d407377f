"""Checkpoints of a training run: the network, the optimiser, the step."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hnkernels.checkpoint import CheckpointError, load_hypernetwork, save_hypernetwork
from hnkernels.checkpoint.atomic import placing
from hnkernels.checkpoint.errors import Fault, naming
from hnkernels.checkpoint.reading import read_torch_file
from hnkernels.errors import InputError
from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork

NETWORK = "hypernetwork.safetensors"
"""The file of the network in a checkpoint."""

_STATE = "training_state.pt"
_EARLIER = "resume from an earlier checkpoint"


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        path: its folder.
        net: the network, with name and step.
        state: the optimiser's state and what else ``save_state`` was given.
    """

    path: Path
    net: Hypernetwork | WeightHypernetwork
    state: dict[str, Any]


def save_state(folder: Path, step: int, net: Hypernetwork | WeightHypernetwork, state: dict[str, Any]) -> Path:
    """Writes ``checkpoint_path(folder, step)`` as a whole or not at all.

    Args:
        folder: where the checkpoints of the run are; made if need be.
        step: steps done.
        net: the network.
        state: optimiser state and numbers; tensors, lists, dicts, strings and numbers only.

    Raises:
        CheckpointError: it cannot be written; an earlier checkpoint of this step is still there.
    """
    target = checkpoint_path(folder, step)
    with naming(target):
        folder.mkdir(parents=True, exist_ok=True)
        with placing(target) as temporary:
            temporary.mkdir()
            save_network(net, temporary / NETWORK)
            buffer = io.BytesIO()
            torch.save({**state, "network_sha256": _sha256(temporary / NETWORK)}, buffer)
            (temporary / _STATE).write_bytes(buffer.getbuffer())
    return target


def checkpoint_path(folder: Path, step: int) -> Path:
    """The checkpoint of this step, whether there is one or not."""
    return folder / f"step-{step:06d}"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in the folder, damaged ones too, that with the most steps first."""
    found = [p for p in folder.glob("step-*") if re.fullmatch(r"step-[0-9]+", p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


def latest_checkpoint(folder: Path, net: Hypernetwork | WeightHypernetwork) -> Checkpoint | None:
    """The checkpoint with the most steps in the folder, if there is one; a damaged one is passed over with a warning.

    Raises:
        CheckpointError: all are damaged.
        ValueError: it is of another network than ``net``.
    """
    damaged: list[CheckpointError] = []
    for path in checkpoints_in(folder):
        try:
            found = read_checkpoint(path, net)
        except CheckpointError as error:
            damaged.append(error)
            continue
        if damaged:
            reasons = "; ".join(map(str, damaged))
            warnings.warn(f"{reasons}. The run continues from {path}, the checkpoint before", stacklevel=2)
        return found
    if damaged:
        raise damaged[0]
    return None


def save_network(net: Hypernetwork | WeightHypernetwork, file: Path) -> None:
    """Writes a network of either kind."""
    if isinstance(net, WeightHypernetwork):
        net.save(file)
    else:
        save_hypernetwork(net, file)


def read_network(file: Path, net: Hypernetwork | WeightHypernetwork) -> Hypernetwork | WeightHypernetwork:
    """Reads a network like ``net``, which stays as it is.

    Raises:
        CheckpointError: the file is missing or damaged.
        ValueError: it is of another network than ``net``.
    """
    if isinstance(net, WeightHypernetwork):
        generating = WeightHypernetwork.load(file)
        shapes, own = ({k: t.shape for k, t in n.state_dict().items()} for n in (generating, net))
        if generating.layers != net.layers or shapes != own:
            raise InputError(f"{file.parent} holds a weight hypernetwork of other layers or widths than this one")
        return generating
    stored = load_hypernetwork(file, allow_legacy_activations=net.config.allow_legacy_activations)
    if (stored.sizes, stored.config) != (net.sizes, net.config):
        raise InputError(
            f"{file.parent} holds a hypernetwork of widths {stored.sizes} with {stored.config}; this one has "
            f"{net.sizes} with {net.config}"
        )
    return stored


def read_checkpoint(path: Path, net: Hypernetwork | WeightHypernetwork) -> Checkpoint:
    """Reads and checks a checkpoint of ``net``, which stays as it is.

    Raises:
        CheckpointError: a file of it is missing or damaged.
        ValueError: it is of another network than ``net``.
    """
    stored = read_network(path / NETWORK, net)
    with naming(path / _STATE):
        state = read_torch_file(path / _STATE)
        if not _fits(state, stored):
            raise Fault("is not the state of training the network beside it", _EARLIER)
        if state["network_sha256"] != _sha256(path / NETWORK):
            raise Fault(f"was not written with the {NETWORK} beside it, or that is damaged", _EARLIER)
    return Checkpoint(path, stored, state)


def _fits(state: Any, net: torch.nn.Module) -> bool:
    shapes = {name: p.shape for name, p in net.named_parameters()}
    try:
        groups, moments = state["optimizer"]["param_groups"], state["optimizer"]["state"]
        names = state["parameters"]
        return (
            type(state["step"]) is int
            and isinstance(state["recent_losses"], list)
            and isinstance(state["run"], dict)
            and isinstance(state["network_sha256"], str)
            and sorted(names) == sorted(shapes)
            and [i for group in groups for i in group["params"]] == list(range(len(names)))
            and all(
                entry[key].shape == shapes[names[i]]
                for i, entry in moments.items()
                for key in ("exp_avg", "exp_avg_sq")
                if isinstance(entry.get(key), torch.Tensor) and entry[key].ndim == len(shapes[names[i]])
            )
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
