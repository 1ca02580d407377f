"""The content of a hypernetwork file of either format, and the network it stands for."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

import torch

from hnkernels.checkpoint.errors import Fault
from hnkernels.checkpoint.sublayers import StateDict, check_linears
from hnkernels.network.hypernetwork import Hypernetwork, Provenance
from hnkernels.network.mlp import MLPConfig

STREAMS = ("K", "V")


@dataclass
class Record:
    """What a file says; every state dict has passed ``check_state_dict``.

    Attributes:
        config: of every MLP.
        provenance: name, step, base model.
        pairs: context width → (K, V) state dicts with keys ``linear.<i>.weight|bias``, in the order of the file.
        notes: what a reader should know about the file: defaults and derivations used where it says nothing.
    """

    config: MLPConfig
    provenance: Provenance
    pairs: dict[int, tuple[StateDict, StateDict]]
    notes: list[str] = field(default_factory=list)


def place(width: int, stream: int) -> str:
    """``"width 768, K:"``: where in a file a fault lies."""
    return f"width {width}, {STREAMS[stream]}:"


def build(record: Record) -> Hypernetwork:
    """The network of a record, in eval mode, in the dtype of the tensors.

    Its parameters are trainable, contiguous, and copies: they share no memory with the record. No random numbers are
    drawn.

    Raises:
        Fault: keys, shapes, dtypes or values do not fit the config.
    """
    _check_dtypes_and_sharing(record)
    for width, pair in record.pairs.items():
        for stream, state in enumerate(pair):
            check_linears(place(width, stream), width, record.config.layer_structure, state)
    net = _skeleton(record)
    parameters: StateDict = {}
    with torch.inference_mode(False), torch.no_grad():
        for width, pair in record.pairs.items():
            for stream, state in enumerate(pair):
                expected = net[width][stream].state_dict()
                _check_keys(place(width, stream), state, expected)
                for key, tensor in state.items():
                    copy = tensor.clone(memory_format=torch.contiguous_format)
                    parameters[f"layers.{width}.{stream}.{key}"] = copy
        net.load_state_dict(parameters, assign=True)
    return net.eval()


def record_of(net: Hypernetwork) -> Record:
    """A record with CPU copies of the network's tensors, in their dtype, in ascending order of width."""
    pairs: dict[int, tuple[StateDict, StateDict]] = {}
    for width in net:
        states: list[StateDict] = []
        for stream, mlp in enumerate(net[width]):
            state = mlp.state_dict()
            if any(tensor.is_meta for tensor in state.values()):
                raise Fault(f"{place(width, stream)} has no data, it is on the meta device", "load or train it first")
            states.append({key: tensor.to("cpu", copy=True).contiguous() for key, tensor in state.items()})
        pairs[width] = (states[0], states[1])
    return Record(net.config, deepcopy(net.provenance), pairs)


def _skeleton(record: Record) -> Hypernetwork:
    """The network without data. Its init is put in afterwards: nothing is to be drawn, so no warning is due either."""
    config = record.config
    try:
        with torch.device("meta"):
            net = Hypernetwork(
                sizes=tuple(record.pairs),
                layer_structure=config.layer_structure,
                activation=config.activation,
                layer_norm=config.layer_norm,
                dropout_structure=config.dropout_structure,
                activate_output=config.activate_output,
                allow_legacy_activations=config.allow_legacy_activations,
            )
    except ValueError as error:
        raise Fault(str(error), "save it again with the program that made it") from error
    net.config = config
    net.provenance = deepcopy(record.provenance)
    for width in net:
        for mlp in net[width]:
            mlp.config = config
    return net


def _check_dtypes_and_sharing(record: Record) -> None:
    dtypes: set[torch.dtype] = set()
    used = 0
    storages: dict[int, int] = {}
    for pair in record.pairs.values():
        for state in pair:
            for tensor in state.values():
                dtypes.add(tensor.dtype)
                used += tensor.numel() * tensor.element_size()
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    if len(dtypes) > 1:
        listed = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise Fault(f"mixes dtypes ({listed})", "convert the network to one dtype, for example with net.float()")
    held = sum(storages.values())
    # K and V of a width may be the same tensors; beyond that factor of two, a small file asks for a large network.
    if used > 2 * held:
        raise Fault(f"claims {used} bytes of weights and holds {held}", "save it again with the program that made it")


def _check_keys(where: str, state: StateDict, expected: StateDict) -> None:
    if missing := sorted(expected.keys() - state.keys()):
        raise Fault(
            f"{where} {missing[0]} is missing",
            "the options stored in the file do not describe its weights; correct them",
        )
    if extra := sorted(state.keys() - expected.keys()):
        raise Fault(
            f"{where} {extra[0]} has no place in the network that the options stored in the file describe",
            "correct the options, or save the file again with the program that made it",
        )
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise Fault(
                f"{where} {key} is {tuple(tensor.shape)} and must be {tuple(expected[key].shape)}",
                "save it again with the program that made it",
            )
