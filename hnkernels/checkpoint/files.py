"""Loading and saving by file name."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from hnkernels.checkpoint import a1111, safetensors_format
from hnkernels.checkpoint.archive import write_torch_file
from hnkernels.checkpoint.atomic import replacing
from hnkernels.checkpoint.errors import CheckpointError, naming
from hnkernels.checkpoint.reading import read_torch_file
from hnkernels.checkpoint.record import Record, build, record_of
from hnkernels.network.hypernetwork import Hypernetwork

EXTENSIONS = (".pt", ".safetensors")


def extension_of(path: str | os.PathLike[str]) -> str:
    """``".pt"`` or ``".safetensors"``, whatever the case of the letters.

    Raises:
        CheckpointError: the name ends in anything else.
    """
    extension = Path(path).suffix.lower()
    if extension not in EXTENSIONS:
        what = "is a folder" if os.path.isdir(path) else f"the extension {extension!r} is not accepted"
        raise CheckpointError(f"{os.fspath(path)}: {what}; use a file in one of the formats {', '.join(EXTENSIONS)}")
    return extension


def read_record(path: str | os.PathLike[str], allow_legacy_activations: bool = False) -> Record:
    """The checked content of a file of either format; raises as ``load_hypernetwork``."""
    extension = extension_of(path)
    with naming(path):
        if extension == ".safetensors":
            return safetensors_format.read(Path(path), allow_legacy_activations)
        return a1111.parse(read_torch_file(Path(path)), Path(path).stem, allow_legacy_activations)


def load_hypernetwork(path: str | os.PathLike[str], *, allow_legacy_activations: bool = False) -> Hypernetwork:
    """Loads a context hypernetwork; see ``hnkernels.files.load_hypernetwork``, which takes either kind.

    Raises:
        CheckpointError: as there; also for a file of the other kind.
    """
    record = read_record(path, allow_legacy_activations)
    with naming(path):
        return build(record)


def save_hypernetwork(net: Hypernetwork, path: str | os.PathLike[str]) -> None:
    """Saves a context hypernetwork; see ``hnkernels.files.save_hypernetwork``, which takes either kind.

    Raises:
        CheckpointError: as there.
        TypeError: ``net`` is not a ``Hypernetwork``.
    """
    if not isinstance(net, Hypernetwork):
        raise TypeError(f"save_hypernetwork takes a network and a path, not {type(net).__name__} first")
    extension = extension_of(path)
    legacy = net.config.allow_legacy_activations
    with naming(path), torch.no_grad():
        record = record_of(net)
        stem = Path(path).stem
        # Parsing and building what is about to be written: no file is made that could not be read back.
        if extension == ".safetensors":
            header, tensors = safetensors_format.header_and_tensors(record)
            build(safetensors_format.parse(header, tensors, stem, legacy))
            with replacing(Path(path)) as file:
                file.write(safetensors_format.to_bytes(header, tensors))
        else:
            flat = a1111.flatten(record)
            build(a1111.parse(flat, stem, legacy))
            with replacing(Path(path)) as file:
                write_torch_file(flat, file)
