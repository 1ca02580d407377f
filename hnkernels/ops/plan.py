"""Plans: what one call of an operation decided, kept for its like and checked in one pass before it runs again.

The first call at inference decides (structure, folding, composition, casts, backend) while a ``Tape`` notes what it
runs. The ``Plan`` made of that holds the programs, the tensors that were computed once, and what it all depends on:
the MLPs' modules, flags, parameters and the projections, each with its memory and version. A call that finds its plan
checks this and runs the programs. A plan lives on the first of its MLPs and holds no tensor of the caller.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from hnkernels.network.mlp import HypernetworkMLP
from hnkernels.ops import derived
from hnkernels.triton.target import setting
from hnkernels.triton.tiling import forced_tiles

if TYPE_CHECKING:
    from hnkernels.triton.program import Programs

_AT_MOST = 128
"""Plans of one MLP: the layers of its width, at some strengths and shapes."""

_version, _shape, _requires_grad = attrgetter("_version"), attrgetter("shape"), attrgetter("requires_grad")
_dtype, _device = attrgetter("dtype"), attrgetter("device")
_TENSOR = object()

_stride, _address, _freed = Tensor.stride, Tensor.data_ptr, torch.UntypedStorage._expired


class Tape:
    """Notes what a call runs, so that it can be run again on another context of the same shape.

    It is good as long as every tensor that goes into a step is the context, given with it (a projection), a result, or
    declared a constant.
    """

    def __init__(self, context: Tensor, given: Sequence[Tensor | None]):
        self.context = context
        self.given = [t for t in given if t is not None]
        self.constants: dict[int, Tensor] = {}
        self.results: list[Tensor] | None = None
        self._rows: Tensor | None = None
        self._steps: list[tuple[Callable[..., Any], tuple, list[Tensor]]] = []

    def rows(self, t: Tensor) -> Tensor:
        """Declares ``t`` to be the context, [M, d]."""
        self._rows = t
        return t

    def constant(self, *tensors: Tensor | None) -> None:
        """Declares parameters, or what was computed from them once."""
        self.constants.update((id(t), t) for t in tensors if t is not None)

    def note(self, function: Callable[..., Any], arguments: tuple, outputs: Sequence[Tensor]) -> None:
        """Takes a step: what it runs, on what (tensors, lists of them, plain values), and its results."""
        self._steps.append((function, arguments, list(outputs)))

    def end(self, results: Sequence[Tensor]) -> None:
        """Takes what the call returns, [M, n] each."""
        self.results = list(results)

    def used(self) -> list[Tensor]:
        """The constants that go into a step."""
        given = {id(t) for t in self.given}
        tensors = [t for _, arguments, _ in self._steps for a in arguments for t in (a if isinstance(a, list) else [a])]
        return list({id(t): t for t in tensors if id(t) in self.constants and id(t) not in given}.values())

    def wiring(self) -> tuple:
        """What is run on what, with a number for every tensor: tapes of equal wiring replay alike."""
        count = itertools.count()
        numbers = {id(t): next(count) for t in (*self.given, *self.used(), self.context, self._rows)}
        steps = []
        for function, arguments, outputs in self._steps:
            steps.append((function, *[_numbered(a, numbers) for a in arguments]))
            numbers.update({id(t): next(count) for t in outputs})
        return (*steps, *[numbers[id(t)] for t in self.results or ()])

    def replay(self, context: Tensor, *others: Tensor) -> list[Tensor]:
        """The steps once more. Shape: context [..., d] → [..., n] each; the others are given, and constants.

        Raises:
            KeyError: something went into a step that nobody knows.
        """
        from hnkernels.triton import vendor

        known = {id(old): new for old, new in zip([*self.given, *self.used()], others, strict=True)}
        known[id(self.context)], known[id(self._rows)] = context, context.reshape(-1, context.shape[-1])
        for function, arguments, outputs in self._steps:
            if function is vendor.linear and arguments[0] is self._rows:  # takes any dimensions
                arguments = (self.context, *arguments[1:])
            results = function(*[_replaced(a, known) for a in arguments])
            known.update(zip(map(id, outputs), [results] if isinstance(results, Tensor) else results, strict=True))
        assert self.results is not None
        return [known[id(t)].view(*context.shape[:-1], t.shape[-1]) for t in self.results]


def _numbered(value: Any, numbers: dict[int, int]) -> Any:
    if isinstance(value, Tensor):
        return _TENSOR, numbers[id(value)]
    if isinstance(value, (list, tuple)):
        return (len(value), *[_numbered(v, numbers) for v in value])
    return value


def _replaced(value: Any, known: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return known[id(value)]
    if isinstance(value, (list, tuple)):
        return [known[id(v)] if isinstance(v, Tensor) else v for v in value]
    return value


@lru_cache
def _programs() -> Programs:
    """Layers of one shape run one program: their plans differ in tensors alone."""
    from hnkernels.triton.program import Programs

    return Programs()


class Recorded:
    """A recorded call that can be made again: checked arguments and what was found out about them.

    Args:
        run: the call. Shape: context [..., d], parameters of the MLPs, given → [..., n] for every projection.
    """

    def __init__(
        self, run: Callable[..., Sequence[Tensor]], mlps: Sequence[HypernetworkMLP], given: Sequence[Tensor | None]
    ):
        self._run, self._mlps = run, list(mlps)
        self._modules = [(mlp._modules, mlp.prepared().modules) for mlp in mlps]
        self._sources = [source for mlp in mlps for source in mlp.prepared()._sources]
        tensors = self._tensors(given)
        self._flags = self._flags_now()
        self._like = self._like_now(tensors)

    def _tensors(self, given: Sequence[Tensor | None]) -> list[Tensor]:
        parameters: list[Any] = [of[name] for of, name in self._sources]
        return parameters + [t for t in given if t is not None]

    def _flags_now(self) -> list[Any]:
        return [(mlp.training, mlp.multiplier, *[m.p for m in mlp.prepared().drops]) for mlp in self._mlps]

    @staticmethod
    def _like_now(tensors: list[Tensor]) -> list[Any]:
        return [
            *map(_shape, tensors), *map(_stride, tensors), *map(_dtype, tensors), *map(_device, tensors)
        ]  # fmt: skip

    def run(self, context: Tensor, given: Sequence[Tensor | None]) -> Sequence[Tensor]:
        """The call, with gradients."""
        return self._run(context, [of[name] for of, name in self._sources], given)

    def attempt(self, context: Tensor, given: Sequence[Tensor | None]) -> Sequence[Tensor] | None:
        """The call, with gradients; ``None`` if anything but values is not as it was when the plan was made."""
        for modules, known in self._modules:
            if modules["linear"]._modules != known:  # type: ignore[union-attr]
                return None
        parameters: list[Any] = [of[name] for of, name in self._sources]
        tensors = parameters + [t for t in given if t is not None]
        if self._flags_now() != self._flags or self._like_now(tensors) != self._like:
            return None
        return self._run(context, parameters, given)


class Plan:
    """A call at inference that can be made again: one program, and what it assumes; see the module.

    Raises:
        KeyError, RuntimeError: it cannot.
    """

    def __init__(self, tape: Tape, mlps: Sequence[HypernetworkMLP]):
        from hnkernels.triton.program import signature  # Triton is optional

        self.constants = tape.used()
        inputs = [tape.context, *tape.given, *self.constants]
        key = (tape.wiring(), signature(inputs), tape.context.device)
        self._program = _programs().program(key, tape.replay, inputs)
        self._modules = [(mlp._modules, mlp.prepared().modules) for mlp in mlps]
        self._mlps = list(mlps)
        self._sources = [source for mlp in mlps for source in mlp.prepared()._sources]
        self._flags = [(mlp.training, mlp.multiplier) for mlp in mlps]
        self._epoch = derived.epoch()
        tensors = self._tensors(tape.given)
        self._addresses = list(map(_address, tensors))
        self._storages = [StorageWeakRef(t.untyped_storage()) for t in tensors]
        self._memory = [storage.cdata for storage in self._storages]
        self._versions, self._shapes = list(map(_version, tensors)), list(map(_shape, tensors))
        self._strides = list(map(_stride, tensors))

    def _tensors(self, given: Sequence[Tensor | None]) -> list[Tensor]:
        parameters: list[Any] = [of[name] for of, name in self._sources]
        return parameters + [t for t in given if t is not None]

    def attempt(self, context: Tensor, given: Sequence[Tensor | None]) -> Sequence[Tensor] | None:
        """The call; ``None`` if anything is not as it was when the plan was made.

        Shape: context [..., d], contiguous → [..., n] for every projection.
        """
        for modules, known in self._modules:
            if modules["linear"]._modules != known:  # type: ignore[union-attr]
                return None
        there = [t for t in given if t is not None]
        parameters: list[Any] = [of[name] for of, name in self._sources]
        tensors = parameters + there
        if (
            [(mlp.training, mlp.multiplier) for mlp in self._mlps] != self._flags
            or self._epoch != derived.epoch()
            or list(map(_address, tensors)) != self._addresses
            or any(map(_freed, self._memory))  # another storage may have got the same address
            or list(map(_version, tensors)) != self._versions
            or list(map(_shape, tensors)) != self._shapes
            or list(map(_stride, tensors)) != self._strides
            or (torch.is_grad_enabled() and (context.requires_grad or any(map(_requires_grad, tensors))))
        ):
            return None
        if derived.capturing(context):
            derived.keep_for_graphs(there, self.constants)
        return self._program.run([context, *there, *self.constants])

    def runner(self, given: Sequence[Tensor | None]) -> Callable[[Tensor], Sequence[Tensor]]:
        """The call without its checks, for those who know that all is as it was, ``launching()`` too."""
        return self._program.runner([*(t for t in given if t is not None), *self.constants])


def key_of(
    context: Tensor,
    mlp_k: Any,
    mlp_v: Any,
    strength: Any,
    backend: str,
    recompute: bool,
    given: Sequence[Tensor | None],
) -> tuple[HypernetworkMLP | None, Any]:
    """Where the plan of such a call is kept, and under which key. Without an owner no plan can be."""
    who: tuple[int | None, ...]
    if type(mlp_k) is HypernetworkMLP and type(mlp_v) is HypernetworkMLP:
        owner, who = mlp_k, (id(mlp_k), id(mlp_v))
    elif isinstance(mlp_k, (list, tuple)) and isinstance(mlp_v, (list, tuple)) and (mlp_k or mlp_v):
        owner, who = (mlp_k or mlp_v)[0], (*map(id, mlp_k), None, *map(id, mlp_v))
    else:
        return None, None
    if not isinstance(owner, HypernetworkMLP):  # refused where arguments are checked, as all that follows
        return None, None
    if type(strength) is not float:
        if isinstance(strength, dict):  # with the names, so that no other strength looks like it
            strength = tuple([(name, tuple(s) if type(s) is list else s) for name, s in strength.items()])
        elif isinstance(strength, list):
            strength = tuple(strength)
        try:
            hash(strength)
        except TypeError:
            return None, None
    device = context.device
    kind = device.type
    autocast = None
    if kind != "meta" and torch.is_autocast_enabled(kind):  # autocast does not know the meta device
        autocast = torch.get_autocast_dtype(kind)
    key = (
        who, strength, *map(id, given), context.shape, context.dtype, device, autocast, backend, recompute,
        torch.is_grad_enabled(), forced_tiles(), setting(),
    )  # fmt: skip
    return owner, key


def attempt(
    owner: HypernetworkMLP, key: Any, context: Tensor, given: Sequence[Tensor | None]
) -> Sequence[Tensor] | None:
    """What the plan returns that is kept under this key, if it still holds."""
    plans = owner.plans
    if plans is None or (plan := plans.get(key)) is None:
        return None
    results = None
    if context.is_contiguous():
        with suppress(KeyError):  # another tool has put something in a parameter's place
            results = plan.attempt(context, given)
    if results is None:
        plans.pop(key, None)
    return results


def launching() -> tuple | None:
    """Under what launches are made, besides their arguments; ``None`` while they are recorded and have to be seen."""
    from hnkernels.triton.program import watched

    return None if watched() else (forced_tiles(), setting())


def runner(
    owner: HypernetworkMLP | None, key: Any, given: Sequence[Tensor | None]
) -> Callable[[Tensor], Sequence[Tensor]] | None:
    """The plan kept under this key without its checks, if there is one; see ``Plan.runner``."""
    plans = None if owner is None else owner.plans
    plan = None if plans is None else plans.get(key)
    return plan.runner(given) if isinstance(plan, Plan) else None


def keep(owner: HypernetworkMLP, key: Any, tape: Tape, mlps: Sequence[HypernetworkMLP]) -> None:
    """Makes a plan of what the tape noted, and keeps it."""
    parameters = [p for mlp in mlps for p in mlp.parameters()]
    if any(mlp.training and mlp.prepared().drops for mlp in mlps):  # whose probabilities may change
        return
    if not tape.context.is_contiguous() or any(t.is_inference() for t in (*tape.given, *parameters)):
        return
    try:
        plan = Plan(tape, mlps)
    except (KeyError, RuntimeError):  # not every call can be made again; this one decides again each time
        return
    store(owner, key, plan, tape.given)


def store(owner: HypernetworkMLP, key: Any, plan: Any, given: Sequence[Tensor | None]) -> None:
    """Keeps a plan as long as the owner and the projections live."""
    if owner.plans is None:
        owner.plans = {}
    plans = owner.plans
    while len(plans) >= _AT_MOST:
        plans.pop(next(iter(plans)))
    plans[key] = plan
    # Held by the plan, not by the weights: a finalizer of theirs would keep the network alive for as long as they live.
    of = weakref.ref(owner)

    def drop(_: weakref.ref) -> None:
        if (mlp := of()) is not None and mlp.plans is not None:
            mlp.plans.pop(key, None)

    plan.given = [weakref.ref(t, drop) for t in given if t is not None]
