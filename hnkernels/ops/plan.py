"""Plans: what one call of an operation decided, kept for its like and checked in one pass before it runs again.

The first call at inference decides (structure, folding, composition, casts, backend) while a ``Tape`` notes what it
runs. The ``Plan`` made of that holds the programs, the tensors that were computed once, and what it all depends on:
the MLPs' modules, flags, parameters and the projections, each with its storage and version. A call that finds its plan
checks this and runs the programs. A plan lives on the first of its MLPs and holds no tensor of the caller.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.ops import derived
from hnkernels.triton.target import setting
from hnkernels.triton.tiling import forced_tiles

_AT_MOST = 128
"""Plans of one MLP: the layers of its width, at some strengths and shapes."""

_version, _shape, _requires_grad = attrgetter("_version"), attrgetter("shape"), attrgetter("requires_grad")
_storage_of = Tensor.untyped_storage


class Tape:
    """Notes what a call runs, so that it can be run again on another context of the same shape.

    It is good as long as every tensor that goes into a step is the context, given with it (a projection), a result, or
    declared a constant.
    """

    def __init__(self, context: Tensor, given: Sequence[Tensor | None]):
        self._given = [context, *[t for t in given if t is not None]]
        self._slots: dict[int, int] = {id(t): i for i, t in enumerate(self._given)}
        self._alive: list[Tensor] = []  # so that no id is used again
        self._constants: dict[int, Tensor] = {}
        self.steps: list[tuple[Callable[[list[Tensor]], Any], list[Tensor], list[Tensor]]] = []
        self.results: list[Tensor] | None = None

    def same(self, t: Tensor, other: Tensor) -> Tensor:
        """Declares ``t`` to be ``other`` with other dimensions, which no step cares for."""
        self._slots[id(t)] = self._slots[id(other)]
        self._alive.append(t)
        return t

    def constant(self, *tensors: Tensor | None) -> None:
        """Declares parameters, or what was computed from them once."""
        self._constants.update((id(t), t) for t in tensors if t is not None)

    def note(self, run: Callable[[list[Tensor]], Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Takes a step: what it runs, on what, and its results."""
        self.steps.append((run, list(inputs), list(outputs)))

    def end(self, results: Sequence[Tensor]) -> None:
        """Takes what the call returns."""
        self.results = list(results)

    def finished(self) -> tuple[list[Tensor], list[tuple[Any, Any]], Any] | None:
        """Constants, steps (what runs, which places of the list of tensors it takes), and the places of the results.

        ``None`` if something went into a step that nobody knows.
        """
        if self.results is None:
            return None
        places = dict(self._slots)
        first = len(self._given)
        constants: list[Tensor] = []
        for _, inputs, _ in self.steps:
            for t in inputs:
                if id(t) not in places and id(t) in self._constants:
                    places[id(t)] = first + len(constants)
                    constants.append(t)
        end = first + len(constants)
        steps = []
        for run, inputs, outputs in self.steps:
            if any(id(t) not in places for t in inputs):
                return None
            steps.append((run, _pick([places[id(t)] for t in inputs])))
            for t in outputs:
                places[id(t)] = end
                end += 1
        if any(id(t) not in places for t in self.results):
            return None
        return constants, steps, _pick([places[id(t)] for t in self.results])


class Plan:
    """A call that can be made again; see the module."""

    def __init__(
        self, tape: Tape, mlps: Sequence[HypernetworkMLP], given: Sequence[Tensor | None], context: Tensor
    ):  # fmt: skip
        found = tape.finished()
        self.usable = found is not None
        if found is None:
            return
        self._constants, self._steps, self._pick = found
        assert tape.results is not None
        self._sizes = [(*context.shape[:-1], t.shape[-1]) for t in tape.results]
        self._modules = [(mlp._modules, mlp.prepared().modules) for mlp in mlps]
        self._mlps = list(mlps)
        self._sources = [source for mlp in mlps for source in mlp.prepared()._sources]
        self._flags = [(mlp.training, mlp.multiplier) for mlp in mlps]
        self._epoch = derived.epoch()
        tensors = self._tensors(given)
        self._storages = [_storage_of(t)._cdata for t in tensors]
        self._kept_storages = [StorageWeakRef(_storage_of(t)) for t in tensors]  # no other takes their addresses
        self._versions, self._shapes = list(map(_version, tensors)), list(map(_shape, tensors))

    def _tensors(self, given: Sequence[Tensor | None]) -> list[Tensor]:
        parameters: list[Any] = [of[name] for of, name in self._sources]
        return parameters + [t for t in given if t is not None]

    def holds(self, context: Tensor, given: Sequence[Tensor | None]) -> bool:
        """Whether everything is as it was when the plan was made."""
        for modules, known in self._modules:
            if modules["linear"]._modules != known:  # type: ignore[union-attr]
                return False
        tensors = self._tensors(given)
        return (
            [(mlp.training, mlp.multiplier) for mlp in self._mlps] == self._flags
            and self._epoch == derived.epoch()
            and [_storage_of(t)._cdata for t in tensors] == self._storages
            and list(map(_version, tensors)) == self._versions
            and list(map(_shape, tensors)) == self._shapes
            and not (torch.is_grad_enabled() and (context.requires_grad or any(map(_requires_grad, tensors))))
        )

    def run(self, context: Tensor, given: Sequence[Tensor | None]) -> list[Tensor]:
        """Launches. Shape: context [..., d], contiguous → [..., n] for every projection."""
        tensors = [context, *[t for t in given if t is not None], *self._constants]
        for run, pick in self._steps:
            tensors += run(pick(tensors))
        if context.ndim == 2:
            return self._pick(tensors)
        return [t.view(size) for t, size in zip(self._pick(tensors), self._sizes, strict=True)]

    def tensors(self) -> list[Tensor]:
        """What was computed once."""
        return self._constants


def key_of(
    context: Tensor, mlp_k: Any, mlp_v: Any, strength: Any, backend: str, given: Sequence[Tensor | None]
) -> tuple[HypernetworkMLP | None, Any]:
    """Where the plan of such a call is kept, and under which key. Without an owner no plan can be."""
    who: tuple[int | None, ...]
    if type(mlp_k) is HypernetworkMLP and type(mlp_v) is HypernetworkMLP:
        owner, who = mlp_k, (id(mlp_k), id(mlp_v))
    elif isinstance(mlp_k, (list, tuple)) and isinstance(mlp_v, (list, tuple)) and (mlp_k or mlp_v):
        owner, who = (mlp_k or mlp_v)[0], (*map(id, mlp_k), None, *map(id, mlp_v))
    else:
        return None, None
    if isinstance(strength, dict):
        strength = tuple([tuple(s) if type(s) is list else s for s in strength.values()])
    elif isinstance(strength, list):
        strength = tuple(strength)
    device = context.device
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    key = (
        who, strength, *map(id, given), context.shape, context.dtype, device, autocast, backend, forced_tiles(),
        setting(),
    )  # fmt: skip
    return owner, key


def find(owner: HypernetworkMLP, key: Any, context: Tensor, given: Sequence[Tensor | None]) -> Plan | None:
    """The plan that is kept under this key, if it still holds."""
    plans = owner.plans
    if plans is None or (plan := plans.get(key)) is None:
        return None
    try:
        if plan.holds(context, given) and context.is_contiguous():
            if context.is_cuda and torch.cuda.is_current_stream_capturing():
                derived.keep_for_graphs(given, plan.tensors())
            return plan
    except (KeyError, RuntimeError):  # a parameter is gone from its place, or a tensor has no version
        pass
    plans.pop(key, None)
    return None


def keep(
    owner: HypernetworkMLP,
    key: Any,
    tape: Tape,
    mlps: Sequence[HypernetworkMLP],
    given: Sequence[Tensor | None],
    context: Tensor,
) -> None:
    """Makes a plan of what the tape noted, and keeps it as long as the owner and the projections live."""
    if not context.is_contiguous() or any(t is not None and t.is_inference() for t in given):
        return
    if any(p.is_inference() for mlp in mlps for p in mlp.parameters()):
        return
    plan = Plan(tape, mlps, given, context)
    if not plan.usable:
        return
    if owner.plans is None:
        owner.plans = {}
    plans = owner.plans
    while len(plans) >= _AT_MOST:
        plans.pop(next(iter(plans)))
    plans[key] = plan
    for t in given:
        if t is not None:
            weakref.finalize(t, plans.pop, key, None).atexit = False


def _pick(places: list[int]) -> Callable[[list[Tensor]], Any]:
    if len(places) > 1:
        return itemgetter(*places)
    (only,) = places
    return lambda tensors: (tensors[only],)
