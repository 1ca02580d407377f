"""Which attention layers a model on disk has, without loading its weights into memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from hnkernels.adapter.layers import AttentionLayer, find_attention, find_attention_keys
from hnkernels.checkpoint.errors import Fault, naming
from hnkernels.checkpoint.reading import check_regular, read_torch_file
from hnkernels.convert.merging import ORIGINAL_PREFIX
from hnkernels.errors import InputError

_PARTS = ("unet", "transformer")


def attention_on_disk(model: Path) -> list[AttentionLayer]:
    """The attention layers of a diffusers pipeline or model folder, or of a checkpoint in one file.

    Raises:
        ValueError: it is none of these, or of a class that this version of diffusers does not have.
        CheckpointError: a file is damaged or hostile.
    """
    if model.is_dir():
        return list(find_attention(model_without_weights(model)))
    if model.suffix.lower() not in (".safetensors", ".ckpt"):
        raise InputError(
            f"{model} is not a model; give a diffusers folder, or a checkpoint that ends in .safetensors or .ckpt"
        )
    with naming(model):
        state = _shapes(model)
    return find_attention_keys(state, ORIGINAL_PREFIX if any(k.startswith(ORIGINAL_PREFIX) for k in state) else "")


def widths_table(layers: Sequence[AttentionLayer], known: Collection[int] | None = None) -> list[tuple[str, ...]]:
    """Rows of a table: context width, kind, number of layers, and whether a hypernetwork of the known widths acts."""
    counts = Counter((layer.width, layer.kind) for layer in layers)
    rows = []
    for (width, kind), count in sorted(counts.items()):
        acts = () if known is None else ("yes" if width in known else "no",)
        rows.append((str(width), kind, str(count), *acts))
    return rows


def model_without_weights(folder: Path) -> torch.nn.Module:
    """The UNet or transformer of a diffusers pipeline or model folder, on the meta device.

    Raises:
        ValueError: it is not such a folder, or of a class that this version of diffusers does not have.
    """
    inside = [folder / part for part in _PARTS if (folder / part / "config.json").is_file()]
    config = (inside[0] if inside else folder) / "config.json"
    if not config.is_file():
        raise InputError(
            f"{folder} is not a diffusers model: there is no config.json in it, or in its folder unet or transformer"
        )
    import diffusers

    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        model_class = getattr(diffusers, settings["_class_name"])
        with torch.device("meta"):
            return model_class.from_config(settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{config} describes no model that this version of diffusers can build: {error}") from error


def _shapes(file: Path) -> dict[str, Tensor]:
    """The tensors by name; of a safetensors file without their data."""
    if file.suffix.lower() == ".safetensors":
        check_regular(file)
        try:
            with safetensors.safe_open(file, framework="pt") as content:
                names = content.keys()
                return {name: torch.empty(content.get_slice(name).get_shape(), device="meta") for name in names}
        except safetensors.SafetensorError as error:
            raise Fault(f"is damaged: {error}", "fetch or save the file again") from error
    content = read_torch_file(file)
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
