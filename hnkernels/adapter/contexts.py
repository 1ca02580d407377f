"""Contexts that many cross-attention layers share: rewritten once, projected once, kept across denoising steps."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from hnkernels.functional import hyper_context
from hnkernels.memo import Memo
from hnkernels.mlp import HypernetworkMLP

Chain = tuple[tuple[HypernetworkMLP, float], ...]
"""MLPs in order of application, each with its adapter's strength."""

_CONTEXTS_AT_MOST = 4  # a prompt and its negative, twice; each holds K and V of all layers


class SharedContext:
    """One context tensor with all that was made of it."""

    def __init__(self, source: Tensor):
        self.source = weakref.ref(source)
        # An inference tensor has no version counter. On the CPU its content is compared instead; elsewhere that
        # would stall the queue, and it is taken as new in every call.
        self._content = source.clone() if source.is_inference() and source.device.type == "cpu" else None
        self._changes = 0
        self.recorded = torch.is_grad_enabled()
        self._rewritten: dict[tuple[int, ...], tuple[Memo[Tensor], list[int]]] = {}
        self._projected: dict[Hashable, Memo[Tensor]] = {}
        self._in_call: tuple[int, dict[Hashable, tuple[Tensor, Hashable]]] = (0, {})

    def rewritten(self, chain: Chain, store: ContextStore) -> tuple[Tensor, Hashable]:
        """The context after ``chain``, [..., d], and a token that changes whenever it does."""
        if not store.running:
            return self._checked(chain, store.call)
        # Nothing changes within one call of the model: one check serves all of its layers.
        if self._in_call[0] != store.call:
            self._in_call = (store.call, {})
        x = self.source()
        assert x is not None
        key = (chain, _autocast_dtype(x), torch.is_grad_enabled())
        found = self._in_call[1].get(key)
        if found is None:
            found = self._in_call[1][key] = self._checked(chain, store.call)
        return found

    def _checked(self, chain: Chain, call: int) -> tuple[Tensor, Hashable]:
        x = self.source()
        assert x is not None
        state = (self._version(x, call), _autocast_dtype(x), torch.is_grad_enabled())
        if not chain:
            return x, state
        memo, made = self._rewritten.setdefault(tuple(id(mlp) for mlp, _ in chain), (Memo(), [0]))
        extra = (
            state,
            tuple((m, mlp.multiplier, mlp.training) for mlp, m in chain),
            # Dropout serves one call. A recorded entry is of one call anyway, and its recomputation falls into another.
            call if not self.recorded and any(mlp.training for mlp, _ in chain) else None,
        )

        def compute() -> Tensor:
            made[0] += 1
            return hyper_context(x, [mlp for mlp, _ in chain], strength=[m for _, m in chain])

        y = memo.get([p for mlp, _ in chain for p in mlp.parameters()], compute, extra)
        return y, (id(memo), made[0])

    def projected(self, key: Hashable, weights: list[Tensor], token: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """K or V of one layer, kept for as long as the rewritten context and the projection's weights stay."""
        return self._projected.setdefault(key, Memo()).get(weights, compute, token)

    def _version(self, x: Tensor, call: int) -> Hashable:
        if not x.is_inference():
            return x._version
        if self._content is None:
            return ("call", call)
        if not torch.equal(self._content, x):
            self._content = x.clone()
            self._changes += 1
        return ("content", self._changes)


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
