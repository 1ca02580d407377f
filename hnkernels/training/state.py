"""Checkpoints of a training run: the network, the optimiser, the step."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from hnkernels.checkpoint import load_hypernetwork, save_hypernetwork
from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork

_NETWORK, _STATE = "hypernetwork.safetensors", "training_state.pt"


def save_state(folder: Path, step: int, net: Hypernetwork | WeightHypernetwork, state: dict[str, Any]) -> Path:
    """Writes ``folder/step-NNNNNN`` as a whole or not at all.

    Args:
        folder: where the checkpoints of the run are; made if need be.
        step: steps done.
        net: the network.
        state: optimiser state and numbers; tensors, lists, dicts, strings and numbers only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:06d}"
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=folder))
    try:
        save_network(net, temporary / _NETWORK)
        torch.save(state, temporary / _STATE)
        temporary.chmod(0o777 & ~_umask())
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def latest_state(folder: Path) -> Path | None:
    """The checkpoint with the most steps in the folder, if there is one."""
    found = [p for p in folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name) and (p / _STATE).is_file()]
    return max(found, key=lambda p: int(p.name[5:]), default=None)


def save_network(net: Hypernetwork | WeightHypernetwork, file: Path) -> None:
    """Writes a network of either kind."""
    if isinstance(net, WeightHypernetwork):
        net.save(file)
    else:
        save_hypernetwork(net, file)


def load_state(checkpoint: Path, net: Hypernetwork | WeightHypernetwork) -> dict[str, Any]:
    """Puts the checkpoint's weights into ``net`` and returns the state beside them.

    Raises:
        CheckpointError: the network's file is broken.
        ValueError: it is another kind of network than ``net``.
    """
    stored: Hypernetwork | WeightHypernetwork
    if isinstance(net, WeightHypernetwork):
        stored = WeightHypernetwork.load(checkpoint / _NETWORK)
        shapes, own = ({k: t.shape for k, t in n.state_dict().items()} for n in (stored, net))
        if stored.layers != net.layers or shapes != own:
            raise ValueError(f"{checkpoint} holds a weight hypernetwork of other layers or widths than this one")
    else:
        stored = load_hypernetwork(checkpoint / _NETWORK, allow_legacy_activations=net.config.allow_legacy_activations)
        if (stored.sizes, stored.config) != (net.sizes, net.config):
            raise ValueError(
                f"{checkpoint} holds a hypernetwork of widths {stored.sizes} with {stored.config}; this one has "
                f"{net.sizes} with {net.config}"
            )
    state = torch.load(checkpoint / _STATE, map_location="cpu", weights_only=True)
    net.load_state_dict(stored.state_dict())
    net.provenance = stored.provenance
    return state


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
