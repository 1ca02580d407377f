"""A model with hypernetworks on it: the adapters in their order, the sites, the shared contexts."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hnkernels.adapter.contexts import Chains, ContextStore, Group, Layers, SharedContext, TracedContext
from hnkernels.adapter.site import STREAMS, Link, Links, Projection, Site
from hnkernels.adapter.sites import AttentionSpec
from hnkernels.triton.support import why_not

if TYPE_CHECKING:
    from hnkernels.adapter.adapter import Adapter

_ATTRIBUTE = "_hnkernels_host"
_CONTEXT_ARGUMENTS = ("encoder_hidden_states", "context")  # diffusers' name, and that of the original repositories


class Host:
    """What hnkernels keeps about one model. It lives on the model instance and leaves with the last adapter."""

    def __init__(self, model: nn.Module, specs: list[AttentionSpec]):
        self.model = model
        self.adapters: list[Adapter] = []
        self.contexts = ContextStore()
        self.traced: TracedContext | None = None
        parameters = list(inspect.signature(type(model).forward).parameters)
        self._context_name = next((name for name in _CONTEXT_ARGUMENTS if name in parameters), None)
        self._context_index = parameters.index(self._context_name) - 1 if self._context_name else -1
        self.sites = [Site(spec, self) for spec in specs]
        self._hooks = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, always_call=True),
        ]
        model.__dict__[_ATTRIBUTE] = self

    @staticmethod
    def of(model: nn.Module) -> Host | None:
        """The host on this model, if it has one."""
        return model.__dict__.get(_ATTRIBUTE)

    def remove(self) -> None:
        """Gives the model back as it was."""
        for site in self.sites:
            site.remove()
        for hook in self._hooks:
            hook.remove()
        del self.model.__dict__[_ATTRIBUTE]

    def clear(self) -> None:
        """Forgets all that was computed once and kept."""
        self.contexts.clear()
        for site in self.sites:
            site.clear()

    def links(self, site: Site) -> Links:
        """What the adapters do at this site now, in order of application."""
        compiling = torch.compiler.is_compiling()
        if not compiling and self.contexts.running and site.links_in_call[0] == self.contexts.call:
            return site.links_in_call[1]
        links = tuple(
            Link(*adapter.net[site.width], adapter.strength, adapter.fused)
            for adapter in self.adapters
            if adapter.acts_on(site.kind, site.width)
        )
        if not compiling:
            site.links_in_call = (self.contexts.call, links)
        return links

    def shared(self, x: Tensor) -> SharedContext | None:
        """The entry of a context that sites share; ``None`` where each has to compute for itself."""
        if torch.is_grad_enabled():
            # Only what was computed outside a checkpointed block may be used inside it.
            entry = self.contexts.find(x)
            return entry if entry is not None and entry.recorded else None
        return self.contexts.open(x)

    def grouped(self, width: int, entry: SharedContext, chains: Chains) -> Layers:
        """K and V of the layers that see this context behind these chains, in one launch.

        Empty where each layer projects for itself: without the Triton backend, or with projections that are trained.
        """
        return entry.grouped(chains, self.contexts, lambda: self._group(width, entry, chains))

    def _group(self, width: int, entry: SharedContext, chains: Chains) -> Group | None:
        x = entry.source()
        assert x is not None
        mlps = [mlp for chain in chains for mlp, _ in chain]
        if not mlps or why_not(x, mlps) is not None:
            return None
        projections: dict[tuple[str, str], Projection] = {}
        for site in self.sites:
            if site.kind == "attn2" and site.width == width and site.chains() == chains:
                projections.update({(site.name, stream): p for stream, p in site.bare_projections().items()})
        weights = [t for projection in projections.values() for t in projection if t is not None]
        if not weights or (torch.is_grad_enabled() and any(t.requires_grad for t in weights)):
            return None
        if any(t.device != x.device for t in weights):  # offloaded for now, or on another GPU
            return None

        def compute(y_k: Tensor, y_v: Tensor) -> Layers:
            from hnkernels.triton.backend import project_group

            streams = [STREAMS.index(stream) for _, stream in projections]
            return dict(zip(projections, project_group(y_k, y_v, list(projections.values()), streams), strict=True))

        return Group(weights, compute)

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
        self.contexts.call += 1
        self.contexts.running = True
        if not torch.is_grad_enabled():
            return None
        if any(p.requires_grad for adapter in self.adapters for p in adapter.net.parameters()):
            # A training step: optimisers with fused=True change parameters without a trace in their version.
            self.contexts.forget_kept()
            for site in self.sites:
                site.clear()
        if context is None:
            return None
        sites = [site for site in self.sites if site.kind == "attn2" and site.width == context.shape[-1]]
        # A dict, not a set: dropout must draw for the chains in the same order in every run.
        chains_of_sites = dict.fromkeys(site.chains() for site in sites)
        chains_of_sites.pop(((), ()), None)
        if not chains_of_sites:
            return None
        alias = context.view_as(context)
        entry = self.contexts.open(alias)
        for chains in chains_of_sites:
            entry.rewritten(chains, self.contexts)
            self.grouped(context.shape[-1], entry, chains)
        if positional:
            return (*args[: self._context_index], alias, *args[self._context_index + 1 :]), kwargs
        return args, {**kwargs, str(self._context_name): alias}

    def _after(self, *_: object) -> None:
        self.traced = None
        if not torch.compiler.is_compiling():
            self.contexts.running = False
