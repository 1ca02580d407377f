"""The proof that what plans and kept values assume still holds: one pass over flat lists per call of the model.

Within a sampling run autograd's version counters are trusted, with the identity of tensors and storages. Some writes
leave no trace there: through ``parameter.data`` (diffusers' ``EMAModel``, tools that merge weights), or the step of an
optimiser with ``fused=True``. So the start of every run compares the content itself, by fingerprints.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, getitem, is_, lt
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.multiprocessing.reductions import StorageWeakRef

from hnkernels.adapter.deltas import State
from hnkernels.network.mlp import HypernetworkMLP

_TIMESTEPS_AT_MOST = 64  # of a batch, to be compared one by one


# Called by ``map`` over whole columns, in every call of the model: loops would take several times as long.
_version, _grad = attrgetter("_version"), attrgetter("requires_grad")
_address, _freed = Tensor.data_ptr, torch.UntypedStorage._expired
_training, _multiplier = attrgetter("training"), attrgetter("multiplier")


class _Columns:
    """What a ``Watch`` compares, column by column. It looks at little: every object comes from memory to the cache."""

    def __init__(
        self,
        present: Sequence,
        absent: Sequence,
        types: Sequence,
        hooks: Sequence,
        modes: Sequence,
        tensors: Sequence,
        factors: Sequence,
    ):
        self._owners, self._names, self._values = _columns(present, 3)
        self._without = absent
        self._typed, self._kinds = _columns(types, 2)
        self._hooks, self._hooked = _columns(hooks, 2)
        self._mlps, self._trained, self._multipliers = _columns(modes, 3)
        self._tensors, self._versions, self._addresses, storages, self._grads = _columns(tensors, 5)
        self._storages = [storage.cdata for storage in storages]
        self._factors, self._factor_versions = factors, [version for _, version in factors]

    def stand(self, grad: bool) -> bool:
        """Whether all that is compared by identity is the same; an error if something is gone or replaced.

        Which parameters take a gradient counts where gradients are recorded, with ``grad``.
        """
        # A copy of a list counts a reference to each object. That brings them all to the cache side by side; where they
        # are looked at, one after another, it takes several times as long.
        for column in (self._owners, self._values, self._hooks):
            column.copy()
        return (
            all(map(is_, map(getitem, self._owners, self._names), self._values))
            and True not in ["forward" in attributes for attributes in self._without]
            and all(map(is_, map(type, self._typed), self._kinds))
            and list(map(bool, self._hooks)) == self._hooked
            and list(map(_training, self._mlps)) == self._trained
            and list(map(_multiplier, self._mlps)) == self._multipliers
            and (not grad or list(map(_grad, self._tensors)) == self._grads)
        )

    def unchanged(self) -> bool:
        """Whether versions and addresses are the same; a ``RuntimeError`` if one has become an inference tensor.

        The same address is the same memory unless that was freed in between.
        """
        return (
            list(map(_version, self._tensors)) == self._versions
            and list(map(_address, self._tensors)) == self._addresses
            and not any(map(_freed, self._storages))
            and [v if (t := ref()) is None else t._version for ref, v in self._factors] == self._factor_versions
        )


def _as_it_is(tensor: Tensor) -> tuple[Tensor, int, int, StorageWeakRef, bool]:
    return tensor, tensor._version, tensor.data_ptr(), StorageWeakRef(tensor.untyped_storage()), tensor.requires_grad


def _columns(rows: Sequence[tuple], count: int) -> list[list]:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(count)]


class Watch:
    """What everything kept depends on, as it was when this was made.

    Attributes:
        trains: whether a parameter of a network takes a gradient.
    """

    def __init__(self) -> None:
        self.trains = False
        # Tools that change all linears at once replace the forward of the class.
        self._present: list[tuple[Mapping[str, Any], str, object]] = [(vars(nn.Linear), "forward", nn.Linear.forward)]
        self._absent: list[dict] = []
        self._types: list[tuple[object, type]] = []
        self._hooks: list[tuple[dict, bool]] = []
        self._modes: list[tuple[HypernetworkMLP, bool, float]] = []
        self._tensors: list[tuple[Tensor, int, int, StorageWeakRef, bool]] = []
        self._factors: list[tuple[weakref.ref[Tensor], int]] = []
        self._sources: list[tuple[Tensor, torch.dtype]] = []
        self._unversioned = False
        self._columns: _Columns | None = None

    def path(self, module: nn.Module, path: str) -> None:
        """The modules on a dotted path below a module."""
        for name in path.split("."):
            child = module._modules[name]
            self._present.append((module._modules, name, child))
            module = child  # type: ignore[assignment]

    def module(self, module: nn.Module) -> None:
        """A projection: its class, its instance forward, and whether hooks come before it."""
        if "forward" in module.__dict__:
            self._present.append((module.__dict__, "forward", module.__dict__["forward"]))
        else:
            self._absent.append(module.__dict__)
        self._types.append((module, type(module)))
        self._hooks.append((module._forward_pre_hooks, bool(module._forward_pre_hooks)))

    def parameters(self, module: nn.Module, of_network: bool = False) -> None:
        """The parameters of one module, without those below it."""
        parameters = module._parameters
        self._present += [(parameters, name, parameter) for name, parameter in parameters.items()]
        for parameter in parameters.values():
            if parameter is None:
                continue
            # Without a version, or memory of its own (in torch.func): it is never taken for unchanged.
            if parameter.is_inference() or is_functorch_wrapped_tensor(parameter):
                self._unversioned = True
                continue
            self._tensors.append(_as_it_is(parameter))
            self.trains = self.trains or (of_network and parameter.requires_grad)
            if type(parameter) in (Tensor, nn.Parameter) and not parameter.is_meta and parameter.numel():
                self._sources.append((parameter, _integers(parameter)))

    def network(self, net: nn.Module, path: str) -> None:
        """All of a network below a dotted path: modules, parameters, modes and multipliers."""
        self.path(net, path)
        for module in net.get_submodule(path).modules():
            for name, child in module._modules.items():
                self._present.append((module._modules, name, child))
            self.parameters(module, of_network=True)
            if isinstance(module, HypernetworkMLP):
                self._modes.append((module, module.training, module.multiplier))

    def factors(self, state: State) -> None:
        """Generated weights. They are not held on to: what was kept of them is found no more when they are gone."""
        for factor in (t for t in (state.a, state.b, state.scale, state.serving) if t is not None):
            if factor.is_inference():
                self._unversioned = True
            else:
                self._factors.append((weakref.ref(factor), factor._version))

    def stands(self, grad: bool) -> bool:
        """Whether modules, hooks, modes and parameters are those that were there, for calls in this grad mode."""
        if self._unversioned:
            return False
        try:
            return self._in_columns().stand(grad)
        except (KeyError, RuntimeError, TypeError):
            return False

    def unchanged(self) -> bool:
        """Whether the values of all parameters are those that were there, as far as a change leaves a trace."""
        try:
            return self._in_columns().unchanged()
        except RuntimeError:
            return False

    def _in_columns(self) -> _Columns:
        if self._columns is None:
            self._columns = _Columns(
                self._present,
                self._absent,
                self._types,
                self._hooks,
                self._modes,
                self._tensors,
                self._factors,
            )
        return self._columns

    def renew(self) -> None:
        """Takes the present values for those that were there."""
        self._tensors = [(*_as_it_is(tensor)[:-1], grad) for tensor, *_, grad in self._tensors]
        self._sources = [(tensor, _integers(tensor)) for tensor, _ in self._sources]  # it may have another dtype
        self._columns = None
        factors = [ref() for ref, _ in self._factors]
        self._factors = [(weakref.ref(f), f._version) for f in factors if f is not None]

    @torch.no_grad()
    def fingerprint(self) -> Fingerprint:
        """Of the content of all parameters: 64-bit sums over the rows of each.

        A changed element changes the sum of its column, unless others of the column make up for it bit for bit.
        """
        by_device: dict[torch.device, list[Tensor]] = {}
        for tensor, integers in self._sources:
            columns = (tensor if tensor.is_contiguous() else tensor.contiguous()).view(integers)
            if columns.ndim > 1:
                columns = (columns if columns.ndim == 2 else columns.flatten(1)).sum(0)
            by_device.setdefault(tensor.device, []).append(columns)
        content = {device: torch.cat(sums) for device, sums in by_device.items()}
        return Fingerprint(content, [id(tensor) for tensor, _ in self._sources])


class Fingerprint:
    """The content of some tensors, shortened."""

    def __init__(self, content: dict[torch.device, Tensor], tensors: Sequence[int]):
        self._content = content
        self._tensors = tensors

    def equals(self, other: Fingerprint | None) -> bool:
        """Whether these are the same tensors with the same content. Waits for the device, once."""
        if other is None or self._tensors != other._tensors or self._content.keys() != other._content.keys():
            return False
        return all(torch.equal(sums, other._content[device]) for device, sums in self._content.items())


def _integers(t: Tensor) -> torch.dtype:
    """The widest integers that the rows of a tensor can be read as."""
    row = (t.shape[-1] if t.ndim else 1) * t.element_size()
    start = t.storage_offset() * t.element_size()
    for dtype in (torch.int64, torch.int32, torch.int16):
        if t.ndim and row % dtype.itemsize == 0 and start % dtype.itemsize == 0 and dtype.itemsize >= t.element_size():
            return dtype
    return {8: torch.int64, 4: torch.int32, 2: torch.int16}.get(t.element_size(), torch.int8)


@dataclass
class _Run:
    context: weakref.ref[Tensor]
    moment: Any


class Runs:
    """Which calls of a thread go on with a sampling run: those that are known to come later in it.

    Of each of the last contexts it knows the timestep. A prompt and its negative may be called apart at one timestep.
    """

    def __init__(self) -> None:
        self._last: dict[int, _Run] = {}

    def goes_on(self, context: Tensor | None, timestep: Any) -> bool:
        """Whether a call with this context comes later than the last with it. Takes note of it."""
        if context is None:
            return False
        now, run = _moment(timestep), self._last.get(id(context))
        if run is not None and run.context() is context:
            before, run.moment = run.moment, now
            return _later(now, before)
        self._last.pop(id(context), None)
        self._last[id(context)] = _Run(weakref.ref(context), now)
        if len(self._last) > 8:
            del self._last[next(iter(self._last))]
        return False

    def forget(self) -> None:
        """The next call starts a run."""
        self._last.clear()


def _moment(timestep: Any) -> float | list[float] | Tensor | None:
    """A timestep as it can be compared; one on an accelerator is not read."""
    if isinstance(timestep, (int, float)):
        return timestep
    if type(timestep) is not Tensor or timestep.is_meta:
        return None
    if not timestep.is_cpu:
        return timestep
    if not 0 < timestep.numel() <= _TIMESTEPS_AT_MOST:
        return None
    return (timestep if timestep.ndim < 2 else timestep.flatten()).tolist()


def _later(now: Any, before: Any) -> bool:
    if isinstance(now, (int, float)) and isinstance(before, (int, float)):
        return now < before
    if isinstance(now, list) and isinstance(before, list):
        return len(now) == len(before) and all(map(lt, now, before))
    if isinstance(now, Tensor) and isinstance(before, Tensor):  # schedulers walk through a tensor of timesteps
        same = now.untyped_storage()._cdata == before.untyped_storage()._cdata and now._version == before._version
        return same and now.storage_offset() > before.storage_offset()
    return False
