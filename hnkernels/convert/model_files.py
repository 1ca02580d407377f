"""Hypernetworks merged into model files: diffusers pipeline folders, and single-file checkpoints.

Files are data: safetensors, or torch files read with ``weights_only``. What is written is whole, or not there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from hnkernels.adapter.layers import TARGETS
from hnkernels.checkpoint.archive import write_torch_file
from hnkernels.checkpoint.atomic import placing
from hnkernels.checkpoint.errors import Fault, naming
from hnkernels.checkpoint.reading import read_safetensors_file, read_torch_file
from hnkernels.convert.merging import StateDict, merge_state_dict
from hnkernels.errors import InputError
from hnkernels.network.hypernetwork import Hypernetwork

SINGLE_FILES = (".safetensors", ".ckpt")

_UNET_WEIGHTS = re.compile(r"diffusion_pytorch_model[^/]*\.(safetensors|bin)")
_SHARD = re.compile(r"-\d{5}-of-(\d{5})")
_OTHER_WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".msgpack", ".onnx", ".gguf")


def merge_files(
    model: Path,
    out: Path,
    nets: Hypernetwork | Sequence[Hypernetwork],
    strengths: float | Sequence[float] = 1.0,
    targets: Sequence[str] = TARGETS,
) -> None:
    """Writes a copy of a model with affine hypernetworks merged into it, of the same format, keys and dtypes.

    Args:
        model: the folder of a diffusers pipeline, or a checkpoint in one file, ``.safetensors`` or ``.ckpt``. Of a
            pipeline all weights of the UNet are merged, every variant and shard; the other parts are copied.
        out: what to write: a folder, or a file that ends in ``.safetensors`` or ``.ckpt``. An earlier pipeline or
            file is replaced. A ``.ckpt`` keeps the tensors of its state dict and nothing else.
        nets, strengths, targets: see ``hnkernels.merge``.

    Raises:
        CheckpointError: a file cannot be read or written, or is damaged, hostile or incomplete.
        ValueError, AdapterError: as ``hnkernels.merge``; or ``out`` cannot take the model.
    """
    source, target = model.resolve(), out.resolve()
    if source in target.parents or target in source.parents:
        raise InputError(f"{out} and {model} lie inside one another; write to a place outside the model")
    if model.is_dir():
        _check_pipeline(model)
        if out.exists() and not (out / "model_index.json").is_file():
            raise InputError(f"{out} exists and is not a diffusers pipeline, so it is not replaced; give another name")
        with naming(out), placing(out) as folder:
            (folder / "unet").mkdir(parents=True)
            for files in _weights_of(model / "unet"):
                _merge_group(files, folder / "unet", nets, strengths, targets)
            shutil.copytree(model, folder, ignore=_left_out(model), dirs_exist_ok=True)
        return
    for path in (model, out):
        if path.suffix.lower() not in SINGLE_FILES:
            raise InputError(
                f"{path} is neither a pipeline folder nor a checkpoint in one file; give a folder, or two files that "
                f"end in {' or '.join(SINGLE_FILES)}"
            )
    if out.is_dir():
        raise InputError(f"{out} is a folder and {model} a file; name a file to write")
    header, state = _read(model)
    merged = merge_state_dict(state, nets, strengths, targets)
    with naming(out), placing(out) as file:
        _write(file, out.suffix.lower(), merged, header)


def read_unet(folder: Path) -> StateDict:
    """The UNet's tensors in a pipeline folder: of its safetensors without a variant if there are any.

    Raises:
        CheckpointError: a file cannot be read, or is damaged, hostile or incomplete.
        ValueError: it is not the folder of a diffusers pipeline with a UNet.
    """
    _check_pipeline(folder)
    files = min(_weights_of(folder / "unet"), key=lambda files: (files[0].suffix == ".bin", len(files[0].name)))
    state: StateDict = {}
    for file in files:
        state.update(_read(file)[1])
    return state


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file, whole or not at all. Raises ``CheckpointError`` if it cannot be written."""
    with naming(path), placing(path) as file:
        _write(file, ".safetensors", tensors, {})


def _check_pipeline(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is not a diffusers pipeline: there is no model_index.json in it")
    if not (folder / "unet").is_dir():
        raise InputError(f"{folder} is a diffusers pipeline without a UNet: there is not a folder unet in it")


def _weights_of(unet: Path) -> list[list[Path]]:
    """The complete sets of weights in a folder: a file each, or all shards of one."""
    sets: dict[str, list[Path]] = {}
    for path in sorted(unet.iterdir()):
        if _UNET_WEIGHTS.fullmatch(path.name):
            sets.setdefault(_SHARD.sub("", path.name), []).append(path)
    with naming(unet):
        if not sets:
            raise Fault(
                "holds no diffusion_pytorch_model.safetensors or .bin, in one file or in shards",
                "save the pipeline with diffusers",
            )
        for name, files in sets.items():
            shard = _SHARD.search(files[0].name)
            if shard and int(shard[1]) != len(files):
                raise Fault(f"holds {len(files)} of the {int(shard[1])} shards of {name}", "fetch the others")
    return list(sets.values())


def _merge_group(
    files: Sequence[Path],
    folder: Path,
    nets: Hypernetwork | Sequence[Hypernetwork],
    strengths: float | Sequence[float],
    targets: Sequence[str],
) -> None:
    contents = {file.name: _read(file) for file in files}
    whole = {key: tensor for _, state in contents.values() for key, tensor in state.items()}
    merged = merge_state_dict(whole, nets, strengths, targets)
    for name, (header, state) in contents.items():
        _write(folder / name, Path(name).suffix, {key: merged[key] for key in state}, header)


def _left_out(model: Path):
    """What ``shutil.copytree`` is not to copy: weights without the hypernetworks, and hidden files."""

    def ignore(folder: str, names: list[str]) -> list[str]:
        if Path(folder) == model / "unet":
            return [name for name in names if not name.endswith(".json")]
        if Path(folder) == model:
            return [name for name in names if name.startswith(".") or name.lower().endswith(_OTHER_WEIGHTS)]
        return []

    return ignore


def _read(path: Path) -> tuple[dict[str, str], StateDict]:
    """The metadata and the tensors of a file."""
    with naming(path):
        if path.suffix.lower() == ".safetensors":
            return read_safetensors_file(path)
        content = read_torch_file(path)
        content = content.get("state_dict", content) if isinstance(content, Mapping) else content
        if not isinstance(content, Mapping):
            raise Fault("holds no state dict", "check that this is a model")
        return {}, {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _write(path: Path, extension: str, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    if extension != ".safetensors":
        with path.open("wb") as file:
            write_torch_file({"state_dict": dict(tensors)} if extension == ".ckpt" else dict(tensors), file)
        return
    seen: set[int] = set()
    apart: StateDict = {}
    for key, tensor in tensors.items():  # safetensors refuses tensors that share memory; torch files may hold some
        storage = tensor.untyped_storage().data_ptr()
        apart[key] = (tensor.clone() if storage in seen else tensor).contiguous()
        seen.add(storage)
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(apart, path, metadata=header or {"format": "pt"})
    except safetensors.SafetensorError as error:
        raise Fault(f"cannot be written: {error}", "check disk and path") from error
    path.chmod(mode)  # safetensors makes it private to its owner; this is the mode of any new file
