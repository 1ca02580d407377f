"""New files made of networks: converted, mixed, merged into a model, written as a LoRA. None replaces another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hnkernels.checkpoint import load_hypernetwork, save_hypernetwork
from hnkernels.checkpoint.files import EXTENSIONS
from hnkernels.convert import mixing
from hnkernels.convert.lora_export import LoraReport, to_lora
from hnkernels.convert.merging import check_number
from hnkernels.convert.model_files import merge_files, read_unet, write_tensors
from hnkernels.errors import InputError
from hnkernels.generator import WeightHypernetwork
from hnkernels.home.library.entry import Entry
from hnkernels.home.library.facts import CONTEXT, WEIGHTS
from hnkernels.home.library.library import SUFFIXES, Library
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.wording import shown

_LORA = ".safetensors"


def convert(library: Library, key: str, extension: str, name: str = "") -> Path:
    """Writes a network in the other format, or in the same one under another name.

    Args:
        library: it.
        key: a context hypernetwork.
        extension: ``".pt"`` or ``".safetensors"``.
        name: of the file; empty for that of the network, to whose files it then belongs.

    Returns:
        The file.

    Raises:
        ValueError: the network is of another kind or cannot be read, or the name is none or is taken.
        CheckpointError: a file cannot be read or written.
    """
    if extension not in EXTENSIONS:
        raise InputError(f"a hypernetwork is converted to {' or '.join(EXTENSIONS)}, not {shown(extension)}")
    entry = library.entry(key)
    net = _context(entry)
    beside_it = entry.own and name in ("", entry.name)
    suffixes = (extension,) if beside_it else SUFFIXES
    numbered = not name and not beside_it
    with library.claiming(library.home.networks, name or entry.name, suffixes, numbered=numbered) as target:
        file = target.with_name(target.name + extension)
        save_hypernetwork(net, file)
    return file


def interpolate(library: Library, a: str, b: str, t: float, name: str = "") -> Path:
    """Writes the network between two of one structure; t = 0 is the first, t = 1 the second.

    Raises:
        ValueError: the networks differ in structure, one is of another kind or cannot be read, t is not a number, or
            the name is none or is taken.
        CheckpointError: a file cannot be read or written.
    """
    first, second = library.entry(a), library.entry(b)
    net = mixing.interpolate(_context(first), _context(second), t)
    return _saved(library, net, name or f"{first.name[:30]}-{second.name[:30]}-{t:g}", bool(name))


def average(library: Library, keys: Sequence[str], weights: Sequence[float] | None = None, name: str = "") -> Path:
    """Writes the weighted mean of two or more networks of one structure; see ``hnkernels.average``.

    Raises:
        ValueError: as ``interpolate``; or there are fewer than two networks, or not as many weights.
        CheckpointError: a file cannot be read or written.
    """
    if len(keys) < 2:
        raise InputError("choose two or more networks to average")
    entries = [library.entry(key) for key in keys]
    net = mixing.average([_context(entry) for entry in entries], weights)
    return _saved(library, net, name or f"{entries[0].name[:40]}-and-{len(keys) - 1}-more", bool(name))


def merge(library: Library, keys: Sequence[str], strengths: Sequence[float], model: str, name: str) -> Path:
    """Writes a copy of a model with affine networks merged into it, in this order, as a model of the home.

    Returns:
        The folder.

    Raises:
        ValueError: there is no such model, a network is not affine, or the name is none or is taken.
        AdapterError: the model has no attention layers of a width that a network has.
        CheckpointError: a file cannot be read or written.
    """
    if not keys:
        raise InputError("choose one or more networks to merge")
    source = library.home.model(model)
    nets = [_context(library.entry(key)) for key in keys]
    with library.claiming(library.home.own_models, name, ("",)) as target:
        merge_files(source, target, nets, list(strengths))
    return target


def export_lora(
    library: Library, key: str, model: str, rank: int, strength: float = 1.0, name: str = "", *, biases: bool = False
) -> tuple[Path, LoraReport]:
    """Writes an affine network as a LoRA for a model, and says how close it comes; see ``hnkernels.to_lora``.

    Returns:
        The file, in ``loras``, and the error of every layer.

    Raises:
        ValueError: there is no such model, the network is not affine, or the name is none or is taken.
        AdapterError: the model has no attention layers of a width that the network has.
        CheckpointError: a file cannot be read or written.
    """
    entry = library.entry(key)
    unet = read_unet(library.home.model(model))
    state, report = to_lora(_context(entry), unet, rank, strength, biases=biases)
    return _write_lora(library, state, name, entry.name), report


def generate_lora(
    library: Library, key: str, styles: Mapping[str, float], strength: float = 1.0, name: str = ""
) -> Path:
    """Writes what a weight hypernetwork generates for a style, or a mixture of styles, as a LoRA.

    Args:
        library: it.
        key: a weight hypernetwork that knows styles.
        styles: style → its share.
        strength: that the LoRA has at weight 1.
        name: of the file; empty for one made of network and styles.

    Returns:
        The file, in ``loras``.

    Raises:
        ValueError: the network is of another kind or does not know a style, or the name is none or is taken.
        CheckpointError: a file cannot be read or written.
    """
    entry = library.entry(key)
    file = entry.file()
    if entry.facts.kind != WEIGHTS or not entry.facts.styles:
        raise InputError(f"{entry.name} knows no styles; choose a weight hypernetwork that was trained on styles")
    if not styles:
        raise InputError(f"choose a style of {entry.name}: {', '.join(entry.facts.styles)}")
    for share in (strength, *styles.values()):
        check_number("strength or share of a style", share)
    with torch.no_grad():
        weights = WeightHypernetwork.load(file).generate_weights(dict(styles)).scaled(strength)
    return _write_lora(library, weights.to_lora_state_dict(), name, entry.name)


def _context(entry: Entry) -> Hypernetwork:
    file = entry.file()
    if entry.facts.kind != CONTEXT:
        raise InputError(f"{entry.name} holds {entry.facts.kind}; this is for context hypernetworks")
    return load_hypernetwork(file, allow_legacy_activations=True)


def _saved(library: Library, net: Hypernetwork, name: str, given: bool) -> Path:
    folder = library.home.networks
    with library.claiming(folder, name, numbered=not given) as target:
        file = target.with_name(target.name + EXTENSIONS[1])
        save_hypernetwork(net, file)
    return file


def _write_lora(library: Library, state: Mapping[str, torch.Tensor], name: str, instead: str) -> Path:
    folder = library.home.loras
    with library.claiming(folder, name or instead, (_LORA,), numbered=not name) as target:
        file = target.with_name(target.name + _LORA)
        write_tensors(file, state)
    return file
