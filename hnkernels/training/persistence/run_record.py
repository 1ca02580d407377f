"""What makes a run the same run when it is resumed: settings, data, loss and versions."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

import hnkernels
from hnkernels.errors import InputError
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.content import hash_of
from hnkernels.training.data.shard_member import ShardMember
from hnkernels.training.persistence.state import Checkpoint

_MAY_DIFFER = (
    *("output_dir", "progress", "max_steps", "max_epochs", "checkpoint_every", "gradient_checkpointing"),
    *("preview_every", "preview_prompts", "preview_conditions", "preview_inference_steps", "preview_guidance"),
    *("cache_dir", "validate_every", "trackers"),
)
"""Settings that decide how long a run is, what it shows and what it keeps, not what a step computes."""


def run_record(
    config: TrainingConfig, data: Any, loss: Any, unet: Any, content: Callable[[Any], str] = hash_of, processes: int = 1
) -> dict[str, str]:
    """What a step of the run depends on beside the weights, each thing in a few words.

    Args:
        config: the settings.
        data: a sequence of ``Example`` or of rows of encoded data.
        loss: see ``training.losses``.
        unet: the base model.
        content: the hash of a picture's content; a cache's ``content_hash`` need not read it again.
        processes: those that train together: their batches count as one.
    """
    settings = {key: _text(value) for key, value in _fields(config).items() if key not in _MAY_DIFFER}
    return {
        **settings,
        "batch_size": str(config.batch_size * processes),
        "data": f"{len(data)} examples, {fingerprint(data, content)}",
        "loss": getattr(loss, "__qualname__", type(loss).__qualname__),
        "hnkernels": hnkernels.__version__,
        "torch": str(torch.__version__),
        "diffusers": _version("diffusers"),
        "device": unet.device.type,
        "dtype of the model": str(unet.dtype).removeprefix("torch."),
    }


def check_resumable(checkpoint: Checkpoint, record: Mapping[str, str], end: int, allow_changes: bool) -> None:
    """Refuses to go on from a checkpoint of another run.

    Args:
        checkpoint: where the run would continue.
        record: of the run that is to go on.
        end: the steps that it is to have.
        allow_changes: warn of differences only.

    Raises:
        ValueError: the checkpoint is past the end, or of a run that differs.
    """
    if checkpoint.state["step"] > end:
        raise InputError(
            f"{checkpoint.path} has {checkpoint.state['step']} steps done, and the settings end the run at "
            f"{end}; raise max_steps or max_epochs"
        )
    if changes := ", ".join(differences(checkpoint.state["run"], record)):
        if not allow_changes:
            raise InputError(
                f"{checkpoint.path} is of a run with other settings, data or versions: {changes}; go on with "
                "allow_changes=True (--allow-changes), or begin again in another output_dir"
            )
        warnings.warn(f"the run continues from {checkpoint.path} with changes: {changes}", stacklevel=4)


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What both records say, and say differently: ``"batch_size (2 then, 4 now)"``."""
    return [f"{key} ({then[key]} then, {now[key]} now)" for key in now if key in then and then[key] != now[key]]


def fingerprint(value: Any, content: Callable[[Any], str] = hash_of) -> str:
    """A short hash of data: of pictures their files' or their pixels' content, of tensors their dtype, shape and bits.

    Args:
        value: the data.
        content: the hash of a picture's content.

    Raises:
        ValueError: a picture's file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    _feed(digest, value, content)
    return digest.hexdigest()


def _feed(digest: Any, value: Any, content: Callable[[Any], str]) -> None:
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (Path, ShardMember, Image)):
        digest.update(f"picture {content(value)};".encode())
    elif isinstance(value, Mapping):
        _feed(digest, [part for key in sorted(value, key=str) for part in (key, value[key])], content)
    elif isinstance(value, (list, tuple)):
        digest.update(f"list {len(value)};".encode())
        for entry in value:
            _feed(digest, entry, content)
    elif dataclasses.is_dataclass(value):
        _feed(digest, _fields(value), content)
    elif hasattr(value, "tobytes"):  # an array
        digest.update(f"array {getattr(value, 'dtype', None)} {getattr(value, 'shape', None)};".encode())
        digest.update(value.tobytes())
    elif value is None or isinstance(value, (str, int, float)):
        text = repr(value)
        digest.update(f"value {len(text)};{text}".encode())


def _fields(value: Any) -> dict[str, Any]:
    """The fields that make two values equal or not."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.compare}


def _text(value: Any) -> str:
    """A setting as text; a number written as a string is that number."""
    try:
        return str(float(value)) if isinstance(value, str) else str(value)
    except ValueError:
        return str(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
