"""The safetensors form of a hypernetwork: nothing is lost, dtype and options included.

Tensors are named ``<width>.<k|v>.linear.<i>.<weight|bias>``. The header's metadata has ``"format": "pt"`` as other
tools expect, and under ``"hnkernels"`` one JSON object::

    {"version": 1,
     "config": {"layer_structure": [1, 2, 1], "activation": "relu", "layer_norm": false, "dropout_structure": null,
                "activate_output": false, "init": "normal"},
     "provenance": {"name": "style", "step": 0, "sd_checkpoint": null, "sd_checkpoint_name": null,
                    "optional_info": null}}

A network that was trained has ``modelspec.…`` and ``ss_…`` entries beside it, which other programs show.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from hnkernels.checkpoint.errors import Fault, brief
from hnkernels.checkpoint.metadata import Metadata, config, provenance, provenance_to_json
from hnkernels.checkpoint.reading import read_safetensors_file
from hnkernels.checkpoint.record import Record, place
from hnkernels.checkpoint.sublayers import StateDict, check_state_dict
from hnkernels.checkpoint.training_metadata import HASH, SPECIFICATION, checked, kept_of

_VERSION = 1
_HEADER = "hnkernels"
_NAME = re.compile(r"([1-9]\d{0,8})\.([kv])\.(linear\..+)")
_AGAIN = "fetch or save the file again"


def read(path: Path, allow_legacy_activations: bool = False) -> Record:
    """What a file says; its tensors are views of the mapped file.

    Raises:
        Fault: it is damaged, not of this library, or contradicts itself.
        OSError: it cannot be read.
    """
    header, tensors = read_safetensors_file(path)
    return parse(header, tensors, path.stem, allow_legacy_activations)


def parse(
    header: Mapping[str, str], tensors: Mapping[str, Tensor], stem: str, allow_legacy_activations: bool = False
) -> Record:
    """What header and tensors say; see ``read``."""
    if _HEADER not in header:
        raise Fault(
            f"is a safetensors file without the {_HEADER!r} entry of a hypernetwork saved by hnkernels",
            "check that this is a hypernetwork, not a LoRA or a whole model",
        )
    try:
        content = json.loads(header[_HEADER])
    except (ValueError, RecursionError) as error:
        raise Fault("has a header that is not valid JSON", _AGAIN) from error
    sections = _sections(content)
    options, origin = Metadata(sections["config"]), Metadata(sections["provenance"])
    notes: list[str] = []
    return Record(
        config(
            layer_structure=options.numbers("layer_structure") or (),
            activation=options.optional_text("activation"),
            layer_norm=options.boolean("layer_norm", False),
            dropout_structure=options.numbers("dropout_structure"),
            activate_output=options.boolean("activate_output", False),
            init=options.text("init", "normal"),
            allow_legacy_activations=allow_legacy_activations,
        ),
        provenance(origin, origin.text("name", stem), kept_of(header, notes)),
        _pairs(tensors),
        notes,
    )


def header_and_tensors(record: Record) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The inverse of ``parse``."""
    options = asdict(record.config)
    del options["allow_legacy_activations"]  # the reader's decision, not the file's
    content = {"version": _VERSION, "config": options, "provenance": provenance_to_json(record.provenance)}
    tensors = {
        f"{width}.{stream}.{key}": tensor
        for width, pair in record.pairs.items()
        for stream, state in zip("kv", pair, strict=True)
        for key, tensor in state.items()
    }
    try:
        return {**checked(record.provenance.training), "format": "pt", _HEADER: json.dumps(content)}, tensors
    except TypeError as error:
        raise Fault(f"cannot hold the options or the provenance: {error}", "use plain strings and numbers") from error


def to_bytes(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a file. The same header and tensors give the same bytes."""
    data = safetensors.torch.save(dict(tensors), metadata=dict(header))
    # The package writes the metadata in an order that changes from process to process.
    end = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:end])
    metadata = entries["__metadata__"]
    if SPECIFICATION in metadata:
        metadata[HASH] = f"0x{hashlib.sha256(data[end:]).hexdigest()}"
    entries["__metadata__"] = dict(sorted(metadata.items()))
    ordered = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    ordered += b" " * (-len(ordered) % 8)
    return len(ordered).to_bytes(8, "little") + ordered + data[end:]


def _sections(content: Any) -> dict[str, dict[str, Any]]:
    version = content.get("version") if isinstance(content, dict) else None
    if type(version) is int and version > _VERSION:
        raise Fault(f"has format version {version}; this hnkernels reads up to {_VERSION}", "update hnkernels")
    if version == _VERSION and isinstance(content.get("kind"), str):
        raise Fault(
            f"holds no context hypernetwork but {brief(content['kind'])}",
            "load it with WeightHypernetwork.load, or GeneratedWeights.load",
        )
    if version != _VERSION or not all(isinstance(content.get(key), dict) for key in ("config", "provenance")):
        raise Fault(f"has a {_HEADER!r} header without version, config and provenance", _AGAIN)
    return content


def _pairs(tensors: Mapping[str, Tensor]) -> dict[int, tuple[StateDict, StateDict]]:
    collected: dict[int, tuple[StateDict, StateDict]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise Fault(f"has the foreign tensor {brief(name)}", "check that this is a hypernetwork")
        pair = collected.setdefault(int(match[1]), ({}, {}))
        pair["kv".index(match[2])][match[3]] = tensor
    if not collected:
        raise Fault("has no weights for any context width", "check that this is a hypernetwork")
    pairs: dict[int, tuple[StateDict, StateDict]] = {}
    for width in sorted(collected):
        for stream, state in enumerate(collected[width]):
            if not state:
                raise Fault(f"{place(width, stream)} is missing", _AGAIN)
        k, v = (check_state_dict(place(width, stream), state) for stream, state in enumerate(collected[width]))
        pairs[width] = k, v
    return pairs
