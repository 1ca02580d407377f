"""Contexts that many cross-attention layers share: rewritten once, projected once, kept across denoising steps."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hnkernels.adapter.call import Kept, autocast_dtype, to_keep
from hnkernels.adapter.links import Links, rewrite
from hnkernels.ops.memo import version_of

_CONTEXTS_AT_MOST = 4  # a prompt and its negative, twice; each holds K and V of all layers


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


class Rewritten:
    """A context after some links, for K and for V, and the call that last asked for it."""

    def __init__(self, pair: tuple[Tensor, Tensor], serial: int, once: bool):
        self.pair = pair
        self.serial = serial
        self.once = once  # dropout was drawn: it serves this one call
        self.version = version_of(pair)  # a stream without a network is the context itself, of whatever kind

    def serves(self, serial: int) -> bool:
        """Whether it may be used in that call."""
        unwritten = version_of(self.pair) == self.version
        return unwritten and (not self.once or self.serial == serial)


class SharedContext:
    """One context tensor with all that was made of it. That its sources are unchanged is proven elsewhere."""

    def __init__(self, source: Tensor):
        self.source = weakref.ref(source)
        # An inference tensor has no version counter. On the CPU its content is compared instead; elsewhere that
        # would stall the queue, and it is taken as new in every call.
        self._content = source.clone() if source.is_inference() and source.device.type == "cpu" else None
        self._version = None if source.is_inference() else source._version
        self._checked = 0
        self.recorded = torch.is_grad_enabled()
        self.replay: dict[Any, Any] = {}  # the generated weights that acted in the recorded call
        self.finalizer: weakref.finalize | None = None
        self.kv: dict[int, Kept] = {}  # by tap number
        self._rewritten: dict[tuple[Links, torch.dtype | None], Rewritten] = {}
        self._ready: tuple[Hashable, list[Kept | None]] = (None, [])

    def check(self, serial: int) -> None:
        """Forgets everything if the context has changed. Asked once per call: within one nothing changes."""
        if self._checked == serial:
            return
        self._checked = serial
        x = self.source()
        assert x is not None
        if self._version is not None:
            if x._version != self._version:
                self._version = x._version
                self.forget()
        elif self._content is None:
            self.forget()
        elif not torch.equal(self._content, x):
            self._content = x.clone()
            self.forget()

    def ready(self, key: Hashable, taps: int) -> list[Kept | None]:
        """By tap number, what can be handed out under the plans and modes of the key. The taps fill it."""
        if self._ready[0] != key:
            self._ready = (key, [None] * taps)
        return self._ready[1]

    def rewritten(self, links: Links, serial: int) -> Rewritten:
        """The context for K and for V, after the links."""
        x = self.source()
        assert x is not None
        key = (links, autocast_dtype(x))
        kept = self._rewritten.get(key)
        if kept is not None and (self.recorded or kept.serves(serial)):
            kept.serial = serial
            return kept
        if not self.recorded:  # a strength that changes at every step would leave one behind each time
            for old in [k for k, other in self._rewritten.items() if other.serial < self._previous(serial)]:
                del self._rewritten[old]
        pair = to_keep(lambda: rewrite(x, links))
        once = any(mlp.training for link in links for mlp in (link.mlp_k, link.mlp_v))
        kept = self._rewritten[key] = Rewritten(pair, serial, once)
        return kept

    def _previous(self, serial: int) -> int:
        """The serial of the call before this one that asked for this context."""
        return max((other.serial for other in self._rewritten.values() if other.serial != serial), default=0)

    def forget(self) -> None:
        """Forgets what was made of the context."""
        self.kv, self._rewritten, self._ready = {}, {}, (None, [])

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept: the context rewritten, and K and V."""
        for rewritten in list(self._rewritten.values()):
            yield from rewritten.pair
        for kept in list(self.kv.values()):
            yield kept.value


class ContextStore:
    """The shared contexts of one model, found by the identity of their tensor; gone when the tensor is gone.

    In a recorded forward pass only the model's own context argument is shared, as an alias made for that call. The
    alias lives as long as a checkpointed block holds it, so that a recomputation finds what its forward pass used.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[int, SharedContext] = OrderedDict()
        self.lock = threading.RLock()  # several threads may call one model
        self._hits = self._misses = 0

    def count(self, hits: int, misses: int) -> None:
        """Takes note how often K or V of a layer was there already, and had to be computed."""
        self._hits += hits
        self._misses += misses

    def stats(self) -> CacheStats:
        """What is kept between calls, and the counts."""
        with self.lock:
            kept = [entry for entry in self._entries.values() if not entry.recorded]
            tensors = {id(t): t for entry in kept for t in entry.tensors()}
        size = sum(t.nbytes for t in tensors.values())
        return CacheStats(len(kept), size, self._hits, self._misses)

    def open(self, context: Tensor) -> SharedContext:
        """The entry for this very tensor, made if there is none."""
        with self.lock:
            entry = self.find(context)
            if entry is None:
                entry = self._entries[id(context)] = SharedContext(context)
                entry.finalizer = weakref.finalize(context, _forget, weakref.ref(self), id(context), weakref.ref(entry))
                kept = [key for key, other in list(self._entries.items()) if not other.recorded]
                self._drop(kept[:-_CONTEXTS_AT_MOST])
            return entry

    def alone(self, context: Tensor) -> SharedContext:
        """An entry that nobody else finds."""
        return SharedContext(context)

    def find(self, context: Tensor) -> SharedContext | None:
        """The entry for this very tensor, if there is one."""
        with self.lock:
            entry = self._entries.get(id(context))
            if entry is None or entry.source() is not context:
                return None
            self._entries.move_to_end(id(context))
            return entry

    def forget_kept(self) -> None:
        """Forgets what outlives a call."""
        with self.lock:
            self._drop([key for key, entry in list(self._entries.items()) if not entry.recorded])

    def clear(self) -> None:
        """Forgets everything."""
        with self.lock:
            self._drop(list(self._entries))

    def _drop(self, keys: list[int]) -> None:
        for key in keys:
            entry = self._entries.pop(key, None)
            if entry is not None and entry.finalizer is not None:
                entry.finalizer.detach()

    def __deepcopy__(self, memo: dict) -> ContextStore:
        return ContextStore()

    def __reduce__(self):
        return ContextStore, ()


def _forget(store_ref: weakref.ref, key: int, entry_ref: weakref.ref) -> None:
    store, entry = store_ref(), entry_ref()
    if store is not None and entry is not None:
        with store.lock:
            if store._entries.get(key) is entry:
                del store._entries[key]
