"""Contexts that many cross-attention layers share: rewritten once, projected once, kept across denoising steps."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from hnkernels.adapter.changes import Replay
from hnkernels.adapter.links import Link, Links, rewrite
from hnkernels.ops.memo import Memo

T = TypeVar("T")

Layers = dict[tuple[str, str], Tensor]
"""K and V by name of the attention layer and stream."""

_CONTEXTS_AT_MOST = 4  # a prompt and its negative, twice; each holds K and V of all layers


class Group(NamedTuple):
    """Projections of many layers: the weights that their results depend on, and how to compute these."""

    names: tuple[tuple[str, str], ...]
    weights: list[Tensor]
    compute: Callable[[Tensor, Tensor], Layers]
    token: Hashable = None  # changes with whatever else they depend on


class CacheStats(NamedTuple):
    """What is kept of a model's prompts, and how often it has served.

    Attributes:
        contexts: context tensors of which something is kept.
        bytes: what is kept of them.
        hits: times that K or V of a layer was there already.
        misses: times that it had to be computed, in calls that keep it.
    """

    contexts: int
    bytes: int
    hits: int
    misses: int


class _Rewritten:
    """A rewritten context, the call of the model that last asked for it, and a token that changes with it."""

    def __init__(self) -> None:
        self.memo: Memo[tuple[Tensor, Tensor]] = Memo()
        self.call = 0
        self.token: Hashable = None


class _Counted(Generic[T]):
    """A computation that knows how often it was called."""

    def __init__(self, compute: Callable[[], T]):
        self._compute = compute
        self.calls = 0

    def __call__(self) -> T:
        self.calls += 1
        return self._compute()


class SharedContext:
    """One context tensor with all that was made of it."""

    def __init__(self, source: Tensor):
        self.source = weakref.ref(source)
        # An inference tensor has no version counter. On the CPU its content is compared instead; elsewhere that
        # would stall the queue, and it is taken as new in every call.
        self._content = source.clone() if source.is_inference() and source.device.type == "cpu" else None
        self._changes = 0
        self.recorded = torch.is_grad_enabled()
        self.replay: Replay = {}  # the generated weights that acted in the recorded call
        self.finalizer: weakref.finalize | None = None
        self._rewritten: dict[Links, _Rewritten] = {}
        self._projected: dict[Hashable, Memo[Tensor]] = {}
        self._grouped: dict[tuple[tuple[str, str], ...], Memo[Layers]] = {}
        self._in_call: tuple[int, dict[Hashable, Any]] = (0, {})

    def rewritten(self, links: Links, store: ContextStore) -> tuple[tuple[Tensor, Tensor], Hashable]:
        """The context for K and for V, after the links, and a token that changes whenever it does."""
        if not links:  # nothing that is kept may hold on to the context itself
            x = self.source()
            assert x is not None
            return (x, x), self._once_a_call("state", store, lambda: self._state(x, store.call))
        return self._once_a_call(("rewritten", links), store, lambda: self._checked(links, store.call))

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

    def _checked(self, links: Links, call: int) -> tuple[tuple[Tensor, Tensor], Hashable]:
        x = self.source()
        assert x is not None
        mlps = [mlp for link in links for mlp in (link.mlp_k, link.mlp_v)]
        kept = self._rewritten.get(links)
        if kept is None:
            # A strength that changes at every step would leave one behind each time.
            for old in [key for key, other in self._rewritten.items() if other.call < call - 1]:
                del self._rewritten[old]
            kept = self._rewritten[links] = _Rewritten()
        kept.call = call
        extra = (
            self._state(x, call),
            tuple((mlp.multiplier, mlp.training) for mlp in mlps),
            # Dropout serves one call. A recorded entry is of one call anyway, and its recomputation falls into another.
            call if not self.recorded and any(mlp.training for mlp in mlps) else None,
        )

        def compute() -> tuple[Tensor, Tensor]:
            kept.token = object()
            return rewrite(x, links)

        y = kept.memo.get([p for mlp in mlps for p in mlp.parameters()], compute, extra)
        return y, kept.token

    def projected(
        self, key: Hashable, weights: list[Tensor], token: Hashable, store: ContextStore, compute: Callable[[], Tensor]
    ) -> Tensor:
        """K or V of one layer, kept for as long as the rewritten context and the projection's weights stay."""
        counted = _Counted(compute)
        kept = self._projected.setdefault(key, Memo()).get(weights, counted, token)
        store.count(counted.calls == 0)
        return kept

    def grouped(self, links: Links, store: ContextStore, gather: Callable[[], Group | None]) -> tuple[Layers, bool]:
        """K and V of the layers that ``gather`` names, all behind these links, in one operation; kept likewise.

        The second result says whether they were there before this call of the model.
        """

        def find() -> tuple[Layers, bool]:
            group = gather()
            if group is None:
                return {}, False
            (y_k, y_v), token = self.rewritten(links, store)
            counted = _Counted(lambda: group.compute(y_k, y_v))
            for names in [n for n in self._grouped if n != group.names and not set(n).isdisjoint(group.names)]:
                del self._grouped[names]  # the groups of one call share no layer: these are of an earlier one
            layers = self._grouped.setdefault(group.names, Memo()).get(group.weights, counted, (token, group.token))
            return layers, counted.calls == 0

        return self._once_a_call(("grouped", links), store, find)

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept: the context rewritten, and K and V."""
        for kept in self._rewritten.values():
            yield from kept.memo.peek() or ()
        for group in self._grouped.values():
            yield from (group.peek() or {}).values()
        for memo in self._projected.values():
            kv = memo.peek()
            yield from [] if kv is None else [kv]

    def _state(self, x: Tensor, call: int) -> Hashable:
        return self._version(x, call), _autocast_dtype(x), torch.is_grad_enabled()

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
        self._rewritten: list[tuple[Links, tuple[Tensor, Tensor]]] = []

    def source(self) -> Tensor:
        """The context, [..., d]."""
        return self._tensor

    def rewritten(self, links: Links) -> tuple[Tensor, Tensor]:
        """The context for K and for V, after the links."""
        for known, pair in self._rewritten:
            if len(known) == len(links) and all(_same(a, b) for a, b in zip(known, links, strict=True)):
                return pair
        pair = rewrite(self._tensor, links)
        self._rewritten.append((links, pair))
        return pair


def _same(a: Link, b: Link) -> bool:
    return a.mlp_k is b.mlp_k and a.k is b.k and a.v is b.v and a.beside == b.beside


class ContextStore:
    """The shared contexts of one model, found by the identity of their tensor; gone when the tensor is gone.

    In a recorded forward pass only the model's own context argument is shared, as an alias made for that call. The
    alias lives as long as a checkpointed block holds it, so that a recomputation finds what its forward pass used.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[int, SharedContext] = OrderedDict()
        self.call = 0
        self.running = False
        self._hits = self._misses = 0

    def count(self, hit: bool) -> None:
        """Takes note that K or V of a layer was there already, or had to be computed."""
        self._hits += hit
        self._misses += not hit

    def stats(self) -> CacheStats:
        """What is kept between calls, and the counts."""
        kept = [entry for entry in self._entries.values() if not entry.recorded]
        tensors = {id(t): t for entry in kept for t in entry.tensors()}
        size = sum(t.nbytes for t in tensors.values())
        return CacheStats(len(kept), size, self._hits, self._misses)

    def open(self, context: Tensor) -> SharedContext:
        """The entry for this very tensor, made if there is none."""
        entry = self.find(context)
        if entry is None:
            entry = self._entries[id(context)] = SharedContext(context)
            entry.finalizer = weakref.finalize(context, _forget, weakref.ref(self), id(context), weakref.ref(entry))
            kept = [key for key, other in self._entries.items() if not other.recorded]
            self._drop(kept[:-_CONTEXTS_AT_MOST])
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
        self._drop([key for key, entry in self._entries.items() if not entry.recorded])

    def clear(self) -> None:
        """Forgets everything."""
        self._drop(list(self._entries))

    def _drop(self, keys: list[int]) -> None:
        for key in keys:
            finalizer = self._entries.pop(key).finalizer
            if finalizer is not None:
                finalizer.detach()

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
