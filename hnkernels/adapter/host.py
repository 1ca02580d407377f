"""A model with hypernetworks on it: the adapters in their order, the sites, the shared contexts."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from hnkernels.adapter.changes import Replay, Together, changed_linears
from hnkernels.adapter.contexts import ContextStore, Group, Layers, SharedContext, TracedContext
from hnkernels.adapter.links import Links
from hnkernels.adapter.site import Site
from hnkernels.adapter.sites import AttentionSpec
from hnkernels.adapter.strength import STREAMS
from hnkernels.ops import derived, onednn
from hnkernels.triton.support import why_not

if TYPE_CHECKING:
    from hnkernels.adapter.handle import Handle

_ATTRIBUTE = "_hnkernels_host"
_CONTEXT_ARGUMENTS = ("encoder_hidden_states", "context")  # diffusers' name, and that of the original repositories


class Host:
    """What hnkernels keeps about one model. It lives on the model instance and leaves with the last adapter."""

    def __init__(self, model: nn.Module, specs: list[AttentionSpec]):
        self.model = model
        self.adapters: list[Handle] = []
        self.contexts = ContextStore()
        self.traced: TracedContext | None = None
        self._replay: Callable[[], SharedContext | None] | None = None
        self._replay_without_context: Replay | None = None
        self._device: torch.device | None = None  # where the networks are, within a call
        parameters = list(inspect.signature(type(model).forward).parameters)
        self._context_name = next((name for name in _CONTEXT_ARGUMENTS if name in parameters), None)
        self._context_index = parameters.index(self._context_name) - 1 if self._context_name else -1
        self.sites = [Site(spec, self) for spec in specs]
        inside = {m for spec in specs for m in _path(model, spec.path)}
        self._around = list(inside)  # what the layers lie in, and may be compiled or checkpointed by itself
        self._hooks: list[Any] = []
        self._replaying: list[Any] = []

    def install(self) -> None:
        """Puts taps and hooks in place: all of them, or none if one cannot be."""
        try:
            for site in self.sites:
                site.install()
            self._hooks = [
                self.model.register_forward_pre_hook(self._before, with_kwargs=True),
                self.model.register_forward_hook(self._after, always_call=True),
            ]
        except BaseException:
            self.remove()
            raise
        self.model.__dict__[_ATTRIBUTE] = self
        watch_projections()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_replay": None, "_replay_without_context": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        watch_projections()  # a pickle may come to life in another process

    @staticmethod
    def of(model: nn.Module) -> Host | None:
        """The host on this model, if it has one."""
        return model.__dict__.get(_ATTRIBUTE)

    def remove(self) -> None:
        """Gives the model back as it was."""
        for site in self.sites:
            site.remove()
        for hook in (*self._hooks, *self._replaying):
            hook.remove()
        self.model.__dict__.pop(_ATTRIBUTE, None)

    def arrange(self) -> None:
        """Tells the sites what acts on them, after an adapter has come, gone or changed."""
        for site in self.sites:
            site.begin_arranging()
        for adapter in self.adapters:
            adapter.arrange(self.sites)
        for site in self.sites:
            site.end_arranging()
        if any(site.changes for site in self.sites) != bool(self._replaying):
            for hook in self._replaying:
                hook.remove()
            around = [] if self._replaying else self._around
            self._replaying = [m.register_forward_pre_hook(self._find_replay, with_kwargs=True) for m in around]

    def clear(self) -> None:
        """Forgets all that was computed once and kept."""
        self.contexts.clear()
        for site in self.sites:
            site.clear()

    def replay(self) -> Replay | None:
        """The generated weights of the recorded call that is being computed once more, in a backward pass."""
        if not in_backward():
            return None
        entry = None if self._replay is None else self._replay()
        return self._replay_without_context if entry is None else entry.replay

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's linears; fp32 where these are quantised."""
        dtypes = (p.dtype for site in self.sites for p in site.attention.parameters())
        return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)

    def shared(self, x: Tensor) -> SharedContext | None:
        """The entry of a context that sites share; ``None`` where each has to compute for itself."""
        if torch.is_grad_enabled():
            # Only what was computed outside a checkpointed block may be used inside it.
            entry = self.contexts.find(x)
            return entry if entry is not None and entry.recorded else None
        return self.contexts.open(x)

    def grouped(self, width: int, entry: SharedContext, links: Links) -> tuple[Layers, bool]:
        """K and V of the layers that see this context behind these links, in one launch, and whether they were kept.

        Empty where each layer projects for itself: with projections that are trained, or with nothing to be gained (on
        the portable backend without generated weights).
        """
        return entry.grouped(links, self.contexts, lambda: self._group(width, entry, links))

    def _group(self, width: int, entry: SharedContext, links: Links) -> Group | None:
        x = entry.source()
        assert x is not None
        mlps = [mlp for link in links for mlp in (link.mlp_k, link.mlp_v)]
        together: dict[tuple[str, str], Together] = {}
        for site in self.sites:
            if site.shared and site.width == width and site.computed_links() == links:
                for stream, projection in site.bare_projections().items():
                    together[site.name, stream] = Together(*projection, site.acting(stream))
        changed = any(t.changes for t in together.values())
        if not changed and (not mlps or why_not(x, mlps) is not None):
            return None
        weights = [t for linear in together.values() for t in (linear.weight, linear.bias) if t is not None]
        if not weights or (torch.is_grad_enabled() and any(t.requires_grad for t in weights)):
            return None
        if any(t.device != x.device for t in weights):  # offloaded for now, or on another GPU
            return None
        rows = [change.rows(x) for linear in together.values() for change in linear.changes]
        weights += [factor for r in rows for factor in (r.a, r.b)]

        def compute(y_k: Tensor, y_v: Tensor) -> Layers:
            linears = [(y_k if stream == "k" else y_v, t) for (_, stream), t in together.items()]
            results: Sequence[Tensor]
            if changed:
                results = changed_linears(linears)
            else:
                from hnkernels.ops.fused import project_group

                streams = [STREAMS.index(stream) for _, stream in together]
                results = project_group(y_k, y_v, [(t.weight, t.bias) for t in together.values()], streams)
            return dict(zip(together, results, strict=True))

        return Group(tuple(together), weights, compute, tuple(r.token for r in rows))

    def _before(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        positional = len(args) > self._context_index
        context = None
        if self._context_name is not None:
            context = args[self._context_index] if positional else kwargs.get(self._context_name)
        if not isinstance(context, Tensor):
            context = None
        if torch.compiler.is_compiling():  # what changed from call to call would be compiled anew every time
            self.traced = None if context is None else TracedContext(context)
            return None
        self._device = None  # the networks may have been moved since
        self.follow(context if context is not None else next(_tensors(args, kwargs), None))
        self.contexts.call += 1
        self.contexts.running = True
        for site in self.sites:
            site.prepare(None)
            site.refresh()
        sites = [] if context is None else [s for s in self.sites if s.shared and s.width == context.shape[-1]]
        if not torch.is_grad_enabled():
            self._prepare(sites, context)
            return None
        if any(p.requires_grad for adapter in self.adapters for p in adapter.parameters()):
            # A training step: optimisers with fused=True change parameters without a trace in their version.
            self.contexts.forget_kept()
            for site in self.sites:
                site.clear()
        # A dict, not a set: dropout must draw for the chains in the same order in every run.
        replay = {c: c.state for site in self.sites for changes in site.changes.values() for c in changes}
        self._replay, self._replay_without_context = None, replay if context is None else None
        chains = dict.fromkeys(site.computed_links() for site in sites)
        if not any(site.acting(stream) for site in sites for stream in STREAMS):
            chains.pop((), None)
        if context is None or not (chains or replay):
            return None
        alias = context.view_as(context)
        entry = self.contexts.open(alias)
        entry.replay = replay
        self._replay = weakref.ref(entry)
        for links in chains:
            entry.rewritten(links, self.contexts)
            self.grouped(context.shape[-1], entry, links)
        self._prepare(sites, alias)
        if positional:
            return (*args[: self._context_index], alias, *args[self._context_index + 1 :]), kwargs
        return args, {**kwargs, str(self._context_name): alias}

    def _find_replay(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before a checkpointed block is computed once more: what acted in that call. Its context says which it was."""
        if in_backward():
            for value in _tensors(args, kwargs):
                entry = self.contexts.find(value)
                if entry is not None and entry.recorded:
                    self._replay = weakref.ref(entry)

    def _prepare(self, sites: list[Site], context: Tensor | None) -> None:
        if any(module._compiled_call_impl is not None for module in self._around):
            for site in sites:
                site.prepare(context)

    def follow(self, x: Tensor | None) -> None:
        """Brings the networks to where the model computes, which with offloading is not where its weights lie."""
        if x is not None and not x.is_meta and x.device != self._device:
            for adapter in self.adapters:
                adapter.follow(x.device)
            self._device = x.device

    def _after(self, *_: object) -> None:
        self.traced = None
        if not torch.compiler.is_compiling():
            self.contexts.running = False
            for site in self.sites:
                site.forget_call()
            if not torch.is_grad_enabled():  # a checkpointed block will ask once more, in the backward pass
                for site in self.sites:
                    site.prepare(None)


def in_backward() -> bool:
    """Whether this is called from a backward pass, which is where checkpointed blocks are computed once more."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _path(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """The module of that name and those around it, the model itself left out."""
    parts = name.split(".")
    return (model.get_submodule(".".join(parts[: i + 1])) for i in range(len(parts)))


def _tensors(args: tuple, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    return (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point())


@lru_cache
def watch_projections() -> None:
    """From now on, forgets what was computed from projections when another tool puts a module in their place.

    Merging a LoRA and taking its modules out again leaves the old module with new values, written through ``.data``
    without a trace in the version counter; that it is put back is the trace. One hook for all models, for copies too.
    """
    register_module_module_registration_hook(_forget_replaced)


def _forget_replaced(parent: nn.Module, name: str, _: object) -> None:
    for hook in parent._forward_pre_hooks.values():
        site = getattr(hook, "__self__", None)
        if isinstance(site, Site) and name in site.projections.values():
            site.host.clear()
            onednn.forget()
            derived.forget()
