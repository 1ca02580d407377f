"""The flat dict of an AUTOMATIC1111 ``.pt`` file, to and from a ``Record``.

Source: the format as AUTOMATIC1111/stable-diffusion-webui 1.8 to 1.10 reads and writes it, and its variants since
October 2022. No code of that project is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hnkernels.checkpoint.errors import Fault, brief
from hnkernels.checkpoint.metadata import Metadata, config, provenance
from hnkernels.checkpoint.placement import dropout_structure, output_is_activated
from hnkernels.checkpoint.record import Record, place
from hnkernels.checkpoint.sublayers import Kind, StateDict, check_linears, check_state_dict, kinds
from hnkernels.network.mlp import normalise_init

MOVED_DROPOUTS = "dropouts are placed where the positions of the weights show them, not where the options say"
"""The note about a file whose options and weights contradict each other; A1111's strict loader refuses it."""

_OLDEST_KEYS = {f"linear{old}.{part}": f"linear.{old - 1}.{part}" for old in (1, 2) for part in ("weight", "bias")}
_INIT_NAMES = {
    "normal": "Normal",
    "xavier_uniform": "XavierUniform",
    "xavier_normal": "XavierNormal",
    "kaiming_uniform": "KaimingUniform",
    "kaiming_normal": "KaimingNormal",
    "identity": "KaimingNormal",
}
_NO_HYPERNETWORK = "check that this is a hypernetwork, not an embedding, a LoRA or a whole model"


def parse(flat: object, stem: str, allow_legacy_activations: bool = False) -> Record:
    """What the dict says.

    Args:
        flat: the unpickled content of a file.
        stem: name of the file without extension, the display name of a file whose own is missing, ``None`` or empty.
        allow_legacy_activations: accept the softmax family.

    Raises:
        Fault: it is not a hypernetwork, or contradicts itself.
    """
    if not isinstance(flat, Mapping):
        raise Fault(f"holds {brief(flat)}, not a dict", _NO_HYPERNETWORK)
    notes: list[str] = []
    pairs = _pairs(flat, notes)
    meta = Metadata(flat)
    structure = meta.numbers("layer_structure")
    structure = (1, 2, 1) if structure is None else structure
    activation = meta.optional_text("activation_func")
    # Checks structure and activation before anything is derived from them.
    config(layer_structure=structure, activation=activation, allow_legacy_activations=allow_legacy_activations)
    width = next(iter(pairs))
    where = place(width, 0)
    sublayers = _common_sublayers(pairs)
    check_linears(where, width, structure, pairs[width][0])
    layer_norm = meta.boolean("is_layer_norm", Kind.NORM in sublayers.values())
    hidden = int(activation not in (None, "linear")) + int(layer_norm)
    dropouts, moved = dropout_structure(
        where,
        sublayers,
        between=hidden,
        layer_count=len(structure),
        stated=meta.numbers("dropout_structure"),
        use_dropout=meta.boolean("use_dropout", False),
        last_layer_dropout=meta.boolean("last_layer_dropout", False),
    )
    if moved:
        notes.append(MOVED_DROPOUTS)
    return Record(
        config(
            layer_structure=structure,
            activation=activation,
            layer_norm=layer_norm,
            dropout_structure=dropouts if any(dropouts) else None,
            activate_output=meta.boolean("activate_output", output_is_activated(sublayers, activation)),
            init=_init(meta, notes),
            allow_legacy_activations=allow_legacy_activations,
        ),
        provenance(meta, meta.optional_text("name") or stem),
        pairs,
        notes,
    )


def flatten(record: Record) -> dict[int | str, Any]:
    """The dict that A1111's strict loader takes, tensors in fp32.

    Every option is written, so that no reader's defaults count. The activation ``None`` becomes ``"linear"``, which
    means the same; the init ``"identity"``, unknown to A1111, becomes ``"KaimingNormal"``.
    """
    settings, origin = record.config, record.provenance
    dropouts = [float(p) for p in settings.dropout_structure or (0.0,) * len(settings.layer_structure)]
    flat: dict[int | str, Any] = {
        width: tuple({key: tensor.to(torch.float32) for key, tensor in state.items()} for state in pair)
        for width, pair in record.pairs.items()
    }
    return flat | {
        "step": origin.step,
        "name": origin.name,
        "layer_structure": [int(s) if isinstance(s, int) else float(s) for s in settings.layer_structure],
        "activation_func": settings.activation or "linear",
        "is_layer_norm": bool(settings.layer_norm),
        "weight_initialization": _INIT_NAMES[settings.init],
        "use_dropout": any(dropouts),
        "sd_checkpoint": origin.sd_checkpoint,
        "sd_checkpoint_name": origin.sd_checkpoint_name,
        "activate_output": bool(settings.activate_output),
        "last_layer_dropout": len(dropouts) > 2 and dropouts[-2] > 0,
        "dropout_structure": dropouts,
        "optional_info": origin.optional_info,
    }


def _pairs(flat: Mapping[Any, Any], notes: list[str]) -> dict[int, tuple[StateDict, StateDict]]:
    pairs: dict[int, tuple[StateDict, StateDict]] = {}
    for key, value in flat.items():
        if type(key) is int:
            pairs[key] = _pair(key, value, notes)
        elif type(key) is not str or key.strip().isdecimal():
            raise Fault(f"has the key {brief(key)} where widths are integers and options are named", _NO_HYPERNETWORK)
    if not pairs:
        raise Fault("has no weights for any context width (320, 768, …)", _NO_HYPERNETWORK)
    return pairs


def _pair(width: int, value: object, notes: list[str]) -> tuple[StateDict, StateDict]:
    if not 1 <= width < 2**31:
        raise Fault(f"has weights for the impossible width {brief(width)}", _NO_HYPERNETWORK)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        count = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
        raise Fault(f"has {brief(value)}{count} for width {width}, not the pair of K and V", _NO_HYPERNETWORK)
    states = []
    for stream, state in enumerate(value):
        if isinstance(state, Mapping) and state and all(key in _OLDEST_KEYS for key in state):
            state = {_OLDEST_KEYS[key]: tensor for key, tensor in state.items()}
            note = "keys linear1 and linear2 of the oldest files were read as linear.0 and linear.1"
            if note not in notes:
                notes.append(note)
        states.append(check_state_dict(place(width, stream), state))
    return states[0], states[1]


def _common_sublayers(pairs: dict[int, tuple[StateDict, StateDict]]) -> dict[int, Kind]:
    """The sub-layers of the first MLP; the others must have the same."""
    common: dict[int, Kind] | None = None
    for width, pair in pairs.items():
        for stream, state in enumerate(pair):
            found = kinds(place(width, stream), state)
            common = found if common is None else common
            if found != common:
                raise Fault(
                    f"{place(width, stream)} has other sub-layers than {place(next(iter(pairs)), 0)[:-1]}",
                    "all MLPs of a hypernetwork are built alike; save it again with the program that made it",
                )
    assert common is not None
    return common


def _init(meta: Metadata, notes: list[str]) -> str:
    name = meta.optional_text("weight_initialization") or "Normal"
    try:
        return normalise_init(name)
    except ValueError:
        notes.append(
            f"weight_initialization {brief(name)} is unknown; it was read as Normal, the weights are unaffected"
        )
        return "normal"
