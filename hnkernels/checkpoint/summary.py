"""What a hypernetwork file holds, for people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hnkernels.checkpoint.errors import naming
from hnkernels.checkpoint.files import extension_of, read_record
from hnkernels.checkpoint.record import build
from hnkernels.network.activations import resolve


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file as ``load_hypernetwork`` does and says what is in it.

    Args:
        path: a ``.pt`` or ``.safetensors`` file. One with an activation of the softmax family is described too.

    Returns:
        Plain values, ready for JSON, in this order: ``format`` ("pt" or "safetensors"), ``name``, ``step``, ``sizes``
        (context widths), ``layer_structure``, ``activation``, ``layer_norm``, ``dropout_structure`` (``None`` without
        dropout), ``activate_output``, ``init``, ``parameters`` (count), ``dtype``, ``file_size`` (bytes),
        ``base_model`` (its name), ``base_model_hash``, ``optional_info``, ``warnings`` (a list of sentences), and
        ``training`` (see ``Provenance``) where the file has any.

    Raises:
        CheckpointError: as ``load_hypernetwork``; so a file that is described has finite weights of the right shapes.
    """
    record = read_record(path, allow_legacy_activations=True)
    with naming(path):
        net = build(record)
        size = Path(path).stat().st_size
    config, origin = record.config, record.provenance
    warnings = list(record.notes)
    row = resolve(config.activation, allow_legacy=True)
    if row is not None and row.legacy:
        warnings.append(
            f"activation {row.name!r} mixes the items of a batch; load it with allow_legacy_activations=True"
        )
    return {
        "format": extension_of(path)[1:],
        "name": origin.name,
        "step": origin.step,
        "sizes": list(net.sizes),
        "layer_structure": list(config.layer_structure),
        "activation": config.activation or "linear",
        "layer_norm": config.layer_norm,
        "dropout_structure": None if config.dropout_structure is None else list(config.dropout_structure),
        "activate_output": config.activate_output,
        "init": config.init,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "dtype": str(next(net.parameters()).dtype).removeprefix("torch."),
        "file_size": size,
        "base_model": origin.sd_checkpoint_name,
        "base_model_hash": origin.sd_checkpoint,
        "optional_info": origin.optional_info,
        "warnings": warnings,
        **({"training": origin.training} if origin.training else {}),
    }
