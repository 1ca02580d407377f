"""What a network under training says of itself: how far its weights have moved, and which units no longer act."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hnkernels.errors import InputError
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.network.mlp import HypernetworkMLP

QUANTITIES = ("change", "dead", "saturated")
"""What is told of every part."""

_ZERO_REGIONS = ("relu", "relu6", "swish", "hardswish", "hardshrink", "softshrink")
"""Activations that are exactly 0, without a gradient, over a range of inputs."""

_LIMITS = {
    "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "hardtanh": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "relu6": (6.0,),
}
"""What activations approach or reach, and where little or no gradient is left. (relu6's other limit counts as dead.)"""

_NEAR = 0.01  # of the limit: tanh has a slope of 0.02 there, a fiftieth of what it has at 0
_OF_ROWS = 0.99  # a unit that answers to one input in a hundred does not learn from the others


@dataclass(frozen=True)
class PartHealth:
    """One MLP of a ``Hypernetwork``, or one part of a ``WeightHypernetwork``.

    Attributes:
        change: norm of the change of its parameters since the start, relative to their norm at the start; where that
            was 0, the norm of the change itself.
        dead: share of the hidden units that are 0 for all contexts. NaN if the activation is never exactly 0 over a
            range, or if there are no contexts of this width.
        saturated: share of the hidden units that are within 1 % of a limit of the activation for at least 99 % of the
            contexts. NaN if the activation has no limits, or if there are no contexts of this width.
    """

    change: float
    dead: float = math.nan
    saturated: float = math.nan


@dataclass(frozen=True)
class Health:
    """How the parts of a network are.

    Attributes:
        parts: ``"768.k"``, ``"768.v"`` … of a ``Hypernetwork``; ``"encoder"``, ``"generator"``, ``"decoder"`` of a
            ``WeightHypernetwork``.
    """

    parts: Mapping[str, PartHealth]

    @classmethod
    @torch.no_grad()
    def of(cls, net: nn.Module, start: Mapping[str, Tensor], contexts: Mapping[int, Tensor] | None = None) -> Health:
        """Measures a network; it stays as it is, and no random numbers are drawn.

        Args:
            net: a ``Hypernetwork`` or a ``WeightHypernetwork``.
            start: copies of the tensors of its ``state_dict()`` at the start of the run, on any device.
            contexts: context width → real contexts [N, width] (or [..., width]); for the widths that are missing, and
                for a ``WeightHypernetwork``, units are not reported. The MLPs run as in evaluation, without dropout.

        Raises:
            ValueError: ``start`` is of another network, or a context has another width than it is said to have.
        """
        contexts = contexts or {}
        for width, rows in contexts.items():
            if rows.ndim < 1 or rows.shape[-1] != width:
                raise InputError(f"contexts[{width}] must be [N, {width}], not {list(rows.shape)}")
        parts = {}
        for name, prefix, module in _parts(net):
            change = _change(module, prefix, start)
            given = contexts.get(module.dim) if isinstance(module, HypernetworkMLP) else None
            dead, saturated = (math.nan, math.nan) if given is None else _units(module, given)
            parts[name] = PartHealth(change, dead, saturated)
        return cls(parts)

    def columns(self) -> tuple[str, ...]:
        """``"768.k.change"``, ``"768.k.dead"`` …: the names of what ``row`` holds, the same during a whole run."""
        return tuple(f"{name}.{quantity}" for name in self.parts for quantity in QUANTITIES)

    def row(self, step: int) -> dict[str, float]:
        """``step`` and the numbers by the names of ``columns``, as a row of a log."""
        numbers = {
            f"{name}.{quantity}": getattr(part, quantity)
            for name, part in self.parts.items()
            for quantity in QUANTITIES
        }
        return {"step": step, **numbers}


def _parts(net: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Name, prefix of the state-dict keys and module of every part."""
    if isinstance(net, Hypernetwork):
        for width in net:
            for index, (stream, mlp) in enumerate(zip("kv", net[width], strict=True)):
                yield f"{width}.{stream}", f"layers.{width}.{index}.", mlp
    else:
        for name, module in net.named_children():
            yield name, f"{name}.", module


def _change(module: nn.Module, prefix: str, start: Mapping[str, Tensor]) -> float:
    """See ``PartHealth.change``; the sums are float64's, on the parameters' device, with one wait for it."""
    moved: list[Tensor] = []
    before: list[Tensor] = []
    for name, parameter in module.named_parameters():
        given = start.get(prefix + name)
        if given is None or given.shape != parameter.shape:
            found = "is missing" if given is None else f"is {list(given.shape)}, not {list(parameter.shape)}"
            raise InputError(f"start is of another network: {prefix + name} {found}; give its own state_dict()")
        then = given.to(parameter.device, torch.float32)
        # The square of a float32 norm overflows at 1e19, where a network has exploded long before.
        moved.append(torch.linalg.vector_norm(parameter.float() - then).double())
        before.append(torch.linalg.vector_norm(then).double())
    if not moved:
        return 0.0
    change, norm = torch.stack([torch.stack(moved).norm(), torch.stack(before).norm()]).tolist()
    return change / norm if norm > 0 else change


def _units(mlp: nn.Module, contexts: Tensor) -> tuple[float, float]:
    """The shares of dead and of saturated units among the hidden ones."""
    assert isinstance(mlp, HypernetworkMLP)
    name, layers = mlp.config.activation, mlp.layers()
    limits, has_zeros = _LIMITS.get(name or "", ()), name in _ZERO_REGIONS
    x = contexts.reshape(-1, mlp.dim).to(layers[0].linear.weight)
    if not len(x) or len(layers) < 2 or not (limits or has_zeros):
        return math.nan, math.nan
    dead, saturated = [], []
    for layer in layers[:-1]:
        x = layer.linear(x)
        if layer.activation is not None:
            x = layer.activation(x)
        dead.append((x == 0).all(0))
        near = torch.zeros_like(x, dtype=torch.bool)
        for limit in limits:
            near |= (x - limit).abs() <= _NEAR * max(map(abs, limits))
        saturated.append(near.float().mean(0) >= _OF_ROWS)
        if layer.norm is not None:
            x = layer.norm(x)
    shares = [torch.cat(kind).float().mean().item() for kind in (dead, saturated)]
    return shares[0] if has_zeros else math.nan, shares[1] if limits else math.nan
