"""A model with hypernetworks on it: what begins and ends with each of its calls.

Before a call, one pass proves that plans and kept values still hold, and the context that cross-attention layers share
is rewritten where it will be recorded. The layers themselves do the rest when their taps are asked.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hnkernels.adapter.call import Call, in_backward
from hnkernels.adapter.contexts import ContextStore
from hnkernels.adapter.layer import TappedLayer
from hnkernels.adapter.layers import AttentionSpec
from hnkernels.adapter.links import Chain
from hnkernels.adapter.projecting import keep_for_graph, plan_of
from hnkernels.adapter.proof import Watch
from hnkernels.adapter.prover import Prover
from hnkernels.adapter.replacements import watch_projections
from hnkernels.adapter.shared import Follows, Shared
from hnkernels.adapter.shared_kv import grouped_kv
from hnkernels.adapter.taps import TAPPED
from hnkernels.adapter.trace import TracedContext
from hnkernels.ops import derived

_ATTRIBUTE = "_hnkernels_host"
_CONTEXT_ARGUMENTS = ("encoder_hidden_states", "context")  # diffusers' name, and that of the original repositories
_TIMESTEP_ARGUMENTS = ("timestep", "timesteps", "t", "sigma")


class Attached(Follows, Protocol):
    """An adapter, as far as the host knows it."""

    fused: bool

    def arrange(self, layers: Sequence[TappedLayer]) -> None:
        """Tells the layers what it does there."""

    def watch(self, watch: Watch) -> None:
        """Says what it depends on."""

    def situation(self) -> object:
        """What else its effect depends on, asked once per call."""


class Host:
    """What hnkernels keeps about one model. It lives on the model instance and leaves with the last adapter."""

    def __init__(self, model: nn.Module, specs: list[AttentionSpec]):
        self.model = model
        self.shared = Shared()
        self.shared.nothing = (None,) * (len(TAPPED) * len(specs))
        parameters = list(inspect.signature(type(model).forward).parameters)
        self._context = _argument(parameters, _CONTEXT_ARGUMENTS)
        self._timestep = _argument(parameters, _TIMESTEP_ARGUMENTS)
        self.layers = [TappedLayer(spec, number, self.shared, model) for number, spec in enumerate(specs)]
        for layer in self.layers:
            layer.peers = self.layers
        inside = {m for spec in specs for m in _path(model, spec.path)}
        # What the layers lie in, and may be compiled or checkpointed by itself.
        self._around = [m for m in inside if not isinstance(m, (nn.ModuleList, nn.ModuleDict))]
        self._instances: list[dict] | None = None  # their attributes, and the model's
        self._compiled = False  # whether any of that is, as of the beginning of the last run
        self._hooks: list[Any] = []
        self._replaying: list[Any] = []
        self._prover = Prover(self.shared, self.layers)

    @property
    def adapters(self) -> list[Any]:
        """In order of application."""
        return self.shared.adapters

    @property
    def contexts(self) -> ContextStore:
        """What is kept of the model's prompts."""
        return self.shared.contexts

    def install(self) -> None:
        """Puts the model's hooks in place."""
        self._hooks = [
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.register_forward_hook(self._after, always_call=True),
        ]
        self.model.__dict__[_ATTRIBUTE] = self
        watch_projections()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_instances": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        watch_projections()  # a pickle may come to life in another process

    @staticmethod
    def of(model: nn.Module) -> Host | None:
        """The host on this model, if it has one."""
        return model.__dict__.get(_ATTRIBUTE)

    def remove(self) -> None:
        """Gives the model back as it was."""
        for layer in self.layers:
            layer.remove()
        for hook in (*self._hooks, *self._replaying):
            hook.remove()
        self.model.__dict__.pop(_ATTRIBUTE, None)

    def add(self, adapter: Attached) -> None:
        """Takes an adapter on: wholly, or not at all if a projection cannot be tapped."""
        self.adapters.append(adapter)
        try:
            self.arrange()
        except BaseException:
            self.discard(adapter)
            raise

    def discard(self, adapter: Attached) -> None:
        """Takes an adapter off; with the last one goes the host."""
        self.adapters.remove(adapter)
        if self.adapters:
            self.arrange()
        else:
            self.remove()
        self.clear()
        self._prover.watch = None

    def arrange(self) -> None:
        """Tells the layers what acts on them, after an adapter has come, gone or changed."""
        with self.contexts.lock:
            for layer in self.layers:
                layer.begin_arranging()
            for adapter in self.adapters:
                adapter.arrange(self.layers)
            chains: dict[tuple, Chain] = {}
            for layer in self.layers:
                layer.end_arranging(chains)
            self.changed()
            if any(layer.deltas for layer in self.layers) != bool(self._replaying):
                for hook in self._replaying:
                    hook.remove()
                around = [] if self._replaying else self._around
                self._replaying = [m.register_forward_pre_hook(self._find_replay, with_kwargs=True) for m in around]

    def changed(self) -> None:
        """An adapter does something else now: plans are made once more, and what is kept stays where it fits them."""
        self._prover.changed = True
        self.shared.replan()

    def clear(self) -> None:
        """Forgets all that was computed once and kept."""
        self.contexts.clear()
        for layer in self.layers:
            layer.forget()
        self.shared.replan()

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's linears; fp32 where these are quantised, or stored in 8 bits and computed in another dtype."""
        dtypes = (p.dtype for layer in self.layers for p in layer.attention.parameters())
        return next((d for d in dtypes if d.is_floating_point and d.itemsize > 1), torch.float32)

    def _before(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        context = _value(self._context, args, kwargs)
        if not isinstance(context, Tensor):
            context = None
        if torch.compiler.is_compiling():  # what changed from call to call would be compiled once more every time
            self.shared.traced = None if context is None else TracedContext(context)
            return None
        shared = self.shared
        x = context if context is not None else next(_tensors(args, kwargs), None)
        call = Call(shared.nothing, x).begin(shared.calls)
        with shared.contexts.lock:
            situation = tuple([adapter.situation() for adapter in self.adapters])
            goes_on = self._prover.prove(call, x, context, _value(self._timestep, args, kwargs))
            call.plans = shared.plans_in(call.grad, self.layers)
            call.ready = call.plans.ready_in((situation, derived.epoch()))
            if not goes_on:
                self._compiled = self._is_compiled()
            call.compiled = self._compiled
            if call.captured:
                for layer in self.layers:
                    keep_for_graph(layer)
            if not call.grad:
                if context is not None:
                    self._open(call, context, situation)
                self._prepare(call, context)
                return None
        alias = None if context is None else self._record(call, context)
        self._prepare(call, alias)
        if alias is None:
            return None
        name, index = self._context  # type: ignore[misc]
        if len(args) > index:
            return (*args[:index], alias, *args[index + 1 :]), kwargs
        return args, {**kwargs, name: alias}

    def _open(self, call: Call, context: Tensor, situation: object) -> None:
        """Finds what is kept of the context."""
        if call.captured:  # a replay follows what is copied into the context: all of it is computed in the graph
            call.entry = self.contexts.alone(context)
        else:
            call.entry = self.contexts.open(context)
            call.entry.check(call.serial)
            call.kept = call.entry.ready((call.plans, call.autocast, situation), len(self.shared.nothing))
        call.context = context

    def _record(self, call: Call, context: Tensor) -> Tensor | None:
        """Rewrites the context outside of blocks that may be checkpointed. Returns an alias for this call."""
        layers = self._of_context(context)
        # A dict, not a set: dropout must draw for the chains in the same order in every run.
        replay = {d: d.state for layer in self.layers for deltas in layer.deltas.values() for d in deltas}
        self.shared.replay_entry, self.shared.replay_without_context = None, None
        plans = [(layer, plan_of(layer, call)) for layer in layers]
        chains = {plan.computed: layer for layer, plan in plans}
        if not any(plan.changed_kv for _, plan in plans):
            chains.pop((), None)
        if not (chains or replay):
            return None
        alias = context.view_as(context)
        entry = self.contexts.open(alias)
        entry.replay = replay
        self.shared.replay_entry = weakref.ref(entry)
        call.entry, call.context = entry, alias
        for links, layer in chains.items():
            if links:
                entry.rewritten(links, call.serial)
            call.grouped.add((id(entry), links))
            grouped_kv(layer, call, entry, links)
        return alias

    def _of_context(self, context: Tensor | None) -> list[TappedLayer]:
        if context is None:
            return []
        return [a for a in self.layers if a.reached and a.shared_context and a.width == context.shape[-1]]

    def _find_replay(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before a checkpointed block is computed once more: what acted in that call. Its context says which it was."""
        if in_backward():
            for value in _tensors(args, kwargs):
                entry = self.contexts.find(value)
                if entry is not None and entry.recorded:
                    self.shared.replay_entry = weakref.ref(entry)

    def _is_compiled(self) -> bool:
        """Whether anything that the layers lie in is compiled by itself."""
        if self._instances is None:
            self._instances = [m.__dict__ for m in (self.model, *self._around)]
        name = "_compiled_call_impl"
        return any([instance[name] for instance in self._instances if name in instance])

    def _prepare(self, call: Call, context: Tensor | None) -> None:
        if call.compiled:
            for layer in self.layers:
                layer.prepare(None)
            for layer in self._of_context(context):
                layer.prepare(context)

    def _after(self, model: nn.Module, args: object, output: object) -> None:
        if torch.compiler.is_compiling():
            self.shared.traced = None
            return
        shared = self.shared
        call = shared.calls.current
        if call is None:
            return
        call.end(shared.calls)
        shared.contexts.count(call.hits, call.misses)
        if call.compiled:
            if not call.grad:  # a checkpointed block will ask once more, in the backward pass
                for layer in self.layers:
                    layer.prepared = None
            return
        for layer in call.used:
            layer.settle()
        if output is not None and call.reached.count(1) != shared.tapped:
            for layer in self.layers:
                layer.missed(call)


def _argument(parameters: list[str], names: tuple[str, ...]) -> tuple[str, int] | None:
    """Name and position of the first of these arguments of a forward that has one."""
    name = next((name for name in names if name in parameters), None)
    return None if name is None else (name, parameters.index(name) - 1)


def _value(argument: tuple[str, int] | None, args: tuple, kwargs: dict[str, Any]) -> Any:
    if argument is None:
        return None
    name, index = argument
    return args[index] if len(args) > index else kwargs.get(name)


def _path(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """The module of that name and those around it, the model itself left out."""
    parts = name.split(".")
    return (model.get_submodule(".".join(parts[: i + 1])) for i in range(len(parts)))


def _tensors(args: tuple, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    return (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point())
