"""The safetensors form of weight hypernetworks and of generated weights.

The header's metadata has under ``"hnkernels"`` one JSON object with ``"version"``, ``"kind"``, the ``"layers"`` (see
``TargetLayer``) and what else there is to say. Nothing of a file is executed, and nothing larger than it is allocated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hnkernels.adapter.layers import TARGETS
from hnkernels.adapter.strength import PROJECTIONS
from hnkernels.checkpoint.atomic import replacing
from hnkernels.checkpoint.errors import CheckpointError, Fault, brief, naming
from hnkernels.checkpoint.reading import read_safetensors_file
from hnkernels.checkpoint.safetensors_format import to_bytes
from hnkernels.checkpoint.training_metadata import kept_of
from hnkernels.generator.targets import TargetLayer
from hnkernels.ops.checks import HIGHEST_RANK

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Those in which parameters and factors may be."""

NETWORK, WEIGHTS = "weight hypernetwork", "generated weights"
"""The kinds of files."""

_VERSION = 1
_HEADER = "hnkernels"
_EXTENSION = ".safetensors"
_AGAIN = "fetch or save the file again"

T = TypeVar("T")


def write(
    path: str | os.PathLike[str],
    kind: str,
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    training: Mapping[str, str] | None = None,
) -> None:
    """Writes a file, whole or not at all; ``training`` as ``checkpoint.training_metadata.checked`` lets pass.

    Raises:
        CheckpointError: the extension is another, the file cannot be written, or a tensor has no data or is not finite.
    """
    _check_extension(path)
    with naming(path), torch.no_grad():
        header = json.dumps({"version": _VERSION, "kind": kind, **content})
        _check_tensors(tensors)
        # safetensors refuses tensors that share memory, as scales of several layers may.
        apart = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        data = to_bytes({**(training or {}), "format": "pt", _HEADER: header}, apart)
        with replacing(Path(path)) as file:
            file.write(data)


def read(path: str | os.PathLike[str], kind: str, parse: Callable[[Mapping[str, Any], dict[str, Tensor]], T]) -> T:
    """What ``parse`` makes of the JSON content and the tensors, which are the caller's own, of a file of this kind.

    The content has under ``"training"`` what the file's metadata say of it.

    Raises:
        CheckpointError: it cannot be read, is damaged or of another kind, a tensor is not finite, or ``parse`` refuses
            the content.
    """
    _check_extension(path)
    with naming(path):
        header, mapped = read_safetensors_file(Path(path))
        content = _content(header, kind)
        _check_tensors(mapped)
        try:
            return parse(
                {**content, "training": kept_of(header, [])}, {name: tensor.clone() for name, tensor in mapped.items()}
            )
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:
            what = str(error).partition("\n")[0][:300]
            raise Fault(f"contradicts itself: {what}", _AGAIN) from error


def kind_of(header: Mapping[str, str]) -> str | None:
    """The kind that a file's header names, if it is one of ours."""
    try:
        content = json.loads(header.get(_HEADER, ""))
    except (ValueError, RecursionError):
        return None
    kind = content.get("kind") if isinstance(content, dict) else None
    return kind if kind in (NETWORK, WEIGHTS) else None


def layers_to_json(layers: Sequence[TargetLayer]) -> list[dict[str, Any]]:
    """The layers as JSON."""
    return [asdict(layer) for layer in layers]


def layers_from_json(content: Any) -> tuple[TargetLayer, ...]:
    """The inverse of ``layers_to_json``.

    Raises:
        Fault: it is anything else.
    """
    if not isinstance(content, list) or not content:
        raise Fault("names no layers", _AGAIN)
    layers = tuple(map(_layer, content))
    if len({layer.name for layer in layers}) != len(layers):
        raise Fault("names a layer twice", _AGAIN)
    return layers


def _layer(entry: Any) -> TargetLayer:
    names = [field.name for field in fields(TargetLayer)]
    if isinstance(entry, dict) and sorted(entry) == sorted(names):
        texts = [entry[name] for name in ("name", "attention", "kind", "projection")]
        numbers = [entry[name] for name in ("out_features", "in_features", "rank")]
        if all(type(text) is str for text in texts) and all(type(number) is int for number in numbers):
            layer = TargetLayer(**entry)
            possible = 1 <= layer.rank <= min(layer.out_features, layer.in_features, HIGHEST_RANK)
            if possible and layer.kind in TARGETS and layer.projection in PROJECTIONS:
                return layer
    name = brief(entry.get("name")) if isinstance(entry, dict) else brief(entry)
    raise Fault(f"describes the impossible layer {name}", _AGAIN)


def _content(header: Mapping[str, str], kind: str) -> dict[str, Any]:
    if _HEADER not in header:
        raise Fault(f"is a safetensors file without the {_HEADER!r} entry of hnkernels", f"check that it holds {kind}")
    try:
        content = json.loads(header[_HEADER])
    except (ValueError, RecursionError) as error:
        raise Fault("has a header that is not valid JSON", _AGAIN) from error
    if not isinstance(content, dict):
        raise Fault(f"has {brief(content)} in place of the {_HEADER!r} entry's JSON object", _AGAIN)
    version = content.get("version")
    if type(version) is int and version > _VERSION:
        raise Fault(f"has format version {version}; this hnkernels reads up to {_VERSION}", "update hnkernels")
    if type(version) is not int or version < 1:
        raise Fault(f"has a {_HEADER!r} entry without a version", _AGAIN)
    if "kind" not in content:
        raise Fault(f"holds no {kind}", "load it with load_hypernetwork if it is a context hypernetwork")
    if content["kind"] != kind:
        raise Fault(f"holds no {kind} but {brief(content['kind'])}", "load it with what saved it")
    return content


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise Fault(f"cannot hold {brief(name)}, which is on the meta device, without data", "give it data first")
        if tensor.dtype in DTYPES and not tensor.isfinite().all():
            raise Fault(f"has NaN or infinite values in {brief(name)}", "use an earlier state of it")


def _check_extension(path: str | os.PathLike[str]) -> None:
    if Path(path).suffix.lower() != _EXTENSION:
        raise CheckpointError(
            f"{os.fspath(path)}: the extension is not accepted; use {_EXTENSION}, the only format of weight "
            "hypernetworks and of what they generate"
        )
