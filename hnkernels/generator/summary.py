"""What a weight hypernetwork's file holds, for people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hnkernels.checkpoint.errors import naming
from hnkernels.checkpoint.reading import read_safetensors_file
from hnkernels.generator import files
from hnkernels.generator.hypernetwork import WeightHypernetwork
from hnkernels.generator.weights import GeneratedWeights


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """``files.NETWORK`` or ``files.WEIGHTS``; ``None`` for any other file.

    Raises:
        CheckpointError: it is called ``.safetensors`` and is not such a file.
    """
    if Path(path).suffix.lower() != ".safetensors" or not Path(path).is_file():
        return None
    with naming(path):
        header, _ = read_safetensors_file(Path(path))
    return files.kind_of(header)


def describe(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Reads a file as its ``load`` does and says what is in it; ``None`` if it is of another kind.

    Raises:
        CheckpointError: it is of these kinds and cannot be loaded.
    """
    kind = kind_of(path)
    if kind is None:
        return None
    loaded = WeightHypernetwork.load(path) if kind == files.NETWORK else GeneratedWeights.load(path)
    layers = loaded.layers
    said: dict[str, Any] = {"kind": kind}
    if isinstance(loaded, WeightHypernetwork):
        encoder: Any = loaded.encoder  # hnkernels' own, as everything in a file
        decoder: Any = loaded.decoder
        said |= {
            "name": loaded.provenance.name,
            "step": loaded.provenance.step,
            **{key: encoder.config[key] for key in ("embedding_dim", "hidden_dim", "pooling", "tasks", "styles")},
            "head": decoder.config["head"],
            "parameters": sum(p.numel() for p in loaded.parameters()),
        }
        dtype = next(loaded.parameters()).dtype
    else:
        said |= {"sets": loaded.sets}
        dtype = loaded.dtype
    said |= {
        "layers": len(layers),
        "projections": sorted({f"{layer.kind}.{layer.projection}" for layer in layers}),
        "ranks": sorted({layer.rank for layer in layers}),
        "dtype": str(dtype).removeprefix("torch."),
        "file_size": Path(path).stat().st_size,
    }
    if isinstance(loaded, WeightHypernetwork) and loaded.provenance.training:
        said |= {"training": loaded.provenance.training}
    return said
