"""Contexts that many cross-attention layers share: rewritten once, projected once, kept across denoising steps."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from hnkernels.functional import hyper_context_pair
from hnkernels.memo import Memo
from hnkernels.mlp import HypernetworkMLP

T = TypeVar("T")

Chain = tuple[tuple[HypernetworkMLP, float], ...]
"""MLPs in order of application, each with its adapter's strength."""

Chains = tuple[Chain, Chain]
"""That of the K stream and that of the V stream."""

Layers = dict[tuple[str, str], Tensor]
"""K and V by name of the attention layer and stream."""

_CONTEXTS_AT_MOST = 4  # a prompt and its negative, twice; each holds K and V of all layers


class Group(NamedTuple):
    """Projections of many layers: the weights that their results depend on, and how to compute these."""

    weights: list[Tensor]
    compute: Callable[[Tensor, Tensor], Layers]


class SharedContext:
    """One context tensor with all that was made of it."""

    def __init__(self, source: Tensor):
        self.source = weakref.ref(source)
        # An inference tensor has no version counter. On the CPU its content is compared instead; elsewhere that
        # would stall the queue, and it is taken as new in every call.
        self._content = source.clone() if source.is_inference() and source.device.type == "cpu" else None
        self._changes = 0
        self.recorded = torch.is_grad_enabled()
        self._rewritten: dict[Hashable, tuple[Memo[tuple[Tensor, Tensor]], list[int]]] = {}
        self._projected: dict[Hashable, Memo] = {}
        self._in_call: tuple[int, dict[Hashable, Any]] = (0, {})

    def rewritten(self, chains: Chains, store: ContextStore) -> tuple[tuple[Tensor, Tensor], Hashable]:
        """The context for K and for V, after their chains, and a token that changes whenever it does."""
        return self._once_a_call(("rewritten", chains), store, lambda: self._checked(chains, store.call))

    def _once_a_call(self, key: Hashable, store: ContextStore, find: Callable[[], T]) -> T:
        """Nothing changes within one call of the model: one check serves all of its layers."""
        if not store.running:
            return find()
        if self._in_call[0] != store.call:
            self._in_call = (store.call, {})
        x = self.source()
        assert x is not None
        key = (key, _autocast_dtype(x), torch.is_grad_enabled())
        found = self._in_call[1].get(key)
        if found is None:
            found = self._in_call[1][key] = find()
        return found

    def _checked(self, chains: Chains, call: int) -> tuple[tuple[Tensor, Tensor], Hashable]:
        x = self.source()
        assert x is not None
        state = (self._version(x, call), _autocast_dtype(x), torch.is_grad_enabled())
        links = [link for chain in chains for link in chain]
        if not links:
            return (x, x), state
        memo, made = self._rewritten.setdefault(
            tuple(tuple(id(mlp) for mlp, _ in chain) for chain in chains), (Memo(), [0])
        )
        extra = (
            state,
            tuple((m, mlp.multiplier, mlp.training) for mlp, m in links),
            # Dropout serves one call. A recorded entry is of one call anyway, and its recomputation falls into another.
            call if not self.recorded and any(mlp.training for mlp, _ in links) else None,
        )

        def compute() -> tuple[Tensor, Tensor]:
            made[0] += 1
            return rewrite(x, chains)

        y = memo.get([p for mlp, _ in links for p in mlp.parameters()], compute, extra)
        return y, (id(memo), made[0])

    def projected(self, key: Hashable, weights: list[Tensor], token: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """K or V of one layer, kept for as long as the rewritten context and the projection's weights stay."""
        return self._projected.setdefault(key, Memo()).get(weights, compute, token)

    def grouped(self, chains: Chains, store: ContextStore, gather: Callable[[], Group | None]) -> Layers:
        """K and V of the layers that ``gather`` names, all behind these chains, in one operation; kept likewise."""

        def find() -> Layers:
            group = gather()
            if group is None:
                return {}
            (y_k, y_v), token = self.rewritten(chains, store)
            mlps = tuple(tuple(id(mlp) for mlp, _ in chain) for chain in chains)
            memo: Memo[Layers] = self._projected.setdefault(("grouped", mlps), Memo())
            return memo.get(group.weights, lambda: group.compute(y_k, y_v), token)

        return self._once_a_call(("grouped", chains), store, find)

    def _version(self, x: Tensor, call: int) -> Hashable:
        if not x.is_inference():
            return x._version
        if self._content is None:
            return ("call", call)
        if not torch.equal(self._content, x):
            self._content = x.clone()
            self._changes += 1
        return ("content", self._changes)


class TracedContext:
    """The model's context while PyTorch's compiler traces a call: rewritten once, inside the graph. Nothing is kept."""

    def __init__(self, source: Tensor):
        self._tensor = source
        self._rewritten: dict[Hashable, tuple[Tensor, Tensor]] = {}

    def source(self) -> Tensor:
        """The context, [..., d]."""
        return self._tensor

    def rewritten(self, chains: Chains) -> tuple[Tensor, Tensor]:
        """The context for K and for V, after their chains."""
        key = tuple((id(mlp), strength) for chain in chains for mlp, strength in chain)
        if key not in self._rewritten:
            self._rewritten[key] = rewrite(self._tensor, chains)
        return self._rewritten[key]


def rewrite(x: Tensor, chains: Chains) -> tuple[Tensor, Tensor]:
    """The context for K and for V; an adapter's chains have the same strengths. Shape: [..., d] → two of [..., d]."""
    chain_k, chain_v = ([mlp for mlp, _ in chain] for chain in chains)
    return hyper_context_pair(x, chain_k, chain_v, strength=[m for _, m in chains[0]])


class ContextStore:
    """The shared contexts of one model, found by the identity of their tensor; gone when the tensor is gone.

    In a recorded forward pass only the model's own context argument is shared, as an alias made for that call. The
    alias lives as long as a checkpointed block holds it, so that a recomputation finds what its forward pass used.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[int, SharedContext] = OrderedDict()
        self.call = 0
        self.running = False

    def open(self, context: Tensor) -> SharedContext:
        """The entry for this very tensor, made if there is none."""
        entry = self.find(context)
        if entry is None:
            entry = self._entries[id(context)] = SharedContext(context)
            weakref.finalize(context, _forget, weakref.ref(self), id(context), weakref.ref(entry))
            kept = [key for key, other in self._entries.items() if not other.recorded]
            for key in kept[:-_CONTEXTS_AT_MOST]:
                del self._entries[key]
        return entry

    def find(self, context: Tensor) -> SharedContext | None:
        """The entry for this very tensor, if there is one."""
        entry = self._entries.get(id(context))
        if entry is None or entry.source() is not context:
            return None
        self._entries.move_to_end(id(context))
        return entry

    def forget_kept(self) -> None:
        """Forgets what outlives a call."""
        for key in [key for key, entry in self._entries.items() if not entry.recorded]:
            del self._entries[key]

    def clear(self) -> None:
        """Forgets everything."""
        self._entries.clear()

    def __deepcopy__(self, memo: dict) -> ContextStore:
        return ContextStore()

    def __reduce__(self):
        return ContextStore, ()


def _forget(store_ref: weakref.ref, key: int, entry_ref: weakref.ref) -> None:
    store, entry = store_ref(), entry_ref()
    if store is not None and entry is not None and store._entries.get(key) is entry:
        del store._entries[key]


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
