"""Networks mixed into new ones: interpolation of two, weighted average of several.

It is the parameters that are mixed, so it makes sense for networks that share an origin: snapshots of one training, or
trainings that started from the same network. Hidden units of others do not correspond to each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from hnkernels.checkpoint.errors import Fault
from hnkernels.checkpoint.record import Record, build, record_of
from hnkernels.convert.merging import check_number
from hnkernels.errors import InputError
from hnkernels.network.activations import resolve
from hnkernels.network.hypernetwork import Hypernetwork, Provenance


def interpolate(net_a: Hypernetwork, net_b: Hypernetwork, t: float) -> Hypernetwork:
    """The network with the parameters ``(1 - t)·a + t·b``.

    Args:
        net_a, net_b: networks of equal sizes and structure; init, name, multipliers and mode may differ.
        t: 0 gives a, 1 gives b; values beyond extrapolate.

    Returns:
        A new network as if loaded from a file: on the CPU, in eval mode, multiplier 1, with step 0. Sums are taken in
        float64 and rounded once, to the wider of the dtypes.

    Raises:
        ValueError: the networks differ in size or structure (the message names the first difference), t is not a finite
            number, or a parameter becomes infinite.
    """
    check_number("t", t)
    return _mixed([net_a, net_b], [1 - t, t])


def average(nets: Sequence[Hypernetwork], weights: Sequence[float] | None = None) -> Hypernetwork:
    """The network with the weighted mean of the networks' parameters.

    Args:
        nets: one or more networks of equal sizes and structure; init, name, multipliers and mode may differ.
        weights: one number per network, divided by their sum; ``None`` for equal ones.

    Returns:
        A new network; see ``interpolate``.

    Raises:
        ValueError: as ``interpolate``; or there are no networks, not as many weights, or their sum is 0.
    """
    if isinstance(nets, torch.nn.Module):
        raise InputError(f"nets must be a list of Hypernetworks, not one {type(nets).__name__}")
    nets = list(nets)
    weights = [1.0] * len(nets) if weights is None else list(weights)
    if not nets or len(weights) != len(nets):
        raise InputError(f"{len(nets)} networks and {len(weights)} weights are given; give one or more, with one each")
    for weight in weights:
        check_number("a weight", weight)
    total = math.fsum(weights)
    if total == 0:
        raise InputError(f"the weights {tuple(weights)} add up to 0; give weights with another sum")
    return _mixed(nets, [weight / total for weight in weights])


def _mixed(nets: Sequence[Hypernetwork], shares: Sequence[float]) -> Hypernetwork:
    for number, net in enumerate(nets, 1):
        if not isinstance(net, Hypernetwork):
            raise InputError(f"only a Hypernetwork can be mixed, not {type(net).__name__}")
        _check_alike(nets[0], net, number)
    try:
        records = [record_of(net) for net in nets]
        first = records[0]
        pairs = {}
        for width, pair in first.pairs.items():
            k, v = (
                {key: _sum([record.pairs[width][stream][key] for record in records], shares) for key in state}
                for stream, state in enumerate(pair)
            )
            pairs[width] = k, v
        return build(Record(first.config, _origin(records, shares), pairs))
    except Fault as fault:
        raise InputError(f"a network {fault.what}; {fault.remedy}") from fault


def _sum(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    # A share of 0 takes nothing, so that it gives the others exactly.
    exact = sum(share * tensor.double() for tensor, share in zip(tensors, shares, strict=True) if share != 0)
    assert isinstance(exact, Tensor)
    mixed = exact.to(dtype)
    if not bool(torch.isfinite(mixed).all()):
        raise InputError(f"a parameter of the mixture is not finite in {dtype}; check the networks and their weights")
    return mixed


def _origin(records: Sequence[Record], shares: Sequence[float]) -> Provenance:
    """Where the mixture comes from: its name tells the recipe, the base model is kept if it is that of all."""
    origins = [record.provenance for record in records]
    models = {(origin.sd_checkpoint, origin.sd_checkpoint_name) for origin in origins}
    checkpoint, checkpoint_name = models.pop() if len(models) == 1 else (None, None)
    name = " + ".join(f"{share:.4g} {origin.name}" for share, origin in zip(shares, origins, strict=True))
    return Provenance(name=name, sd_checkpoint=checkpoint, sd_checkpoint_name=checkpoint_name)


def _check_alike(one: Hypernetwork, other: Hypernetwork, number: int) -> None:
    names = [repr(net.provenance.name) for net in (one, other)]
    if names[0] == names[1]:
        names = ["the first", f"number {number}"]
    for (what, a), (_, b) in zip(_structure(one), _structure(other), strict=True):
        if a != b:
            raise InputError(
                f"only networks of equal structure can be mixed; {names[0]} has {what} {a} and {names[1]} has {b}"
            )


def _structure(net: Hypernetwork) -> list[tuple[str, object]]:
    """What has to be equal, without differences in writing: an output activation where there is no activation."""
    config = net.config
    row = resolve(config.activation, allow_legacy=True)
    return [
        ("sizes", net.sizes),
        ("layer_structure", config.layer_structure),
        ("activation", "linear" if row is None else row.name),
        ("layer_norm", config.layer_norm),
        ("activate_output", config.activate_output and row is not None),
        ("dropouts", tuple(config.dropout_after(i) for i in range(len(config.layer_structure) - 1))),
    ]
