"""What inference computes once from parameters and keeps: casts, LayerNorm's vectors, composed and folded weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from hnkernels.memo import Memo

T = TypeVar("T")

_AT_MOST = 4  # per anchor: a projection meets few chains, a parameter few dtypes

# Tensor → what was derived from it, by purpose. Caches and nothing more: gone with the tensor. What depends on
# parameters that take gradients is apart, because optimisers with fused=True change these without a trace.
_of_frozen: WeakIdKeyDictionary = WeakIdKeyDictionary()
_of_trained: WeakIdKeyDictionary = WeakIdKeyDictionary()


def derived(anchor: Tensor, purpose: Hashable, tensors: Sequence[Tensor], compute: Callable[[], T]) -> T:
    """``compute()``, kept with ``anchor`` for as long as ``tensors`` stay as they are."""
    if torch.compiler.is_compiling():  # a compiled graph cannot look into the cache
        return compute()
    kept = _of_trained if any(t.requires_grad for t in tensors) else _of_frozen
    memos = kept.get(anchor)
    if memos is None:
        memos = kept[anchor] = OrderedDict()
    memo: Memo[T] = memos.setdefault(purpose, Memo())
    memos.move_to_end(purpose)
    while len(memos) > _AT_MOST:
        memos.popitem(last=False)
    return memo.get(tensors, compute)


def forget_trained() -> None:
    """Drops what depends on parameters that take gradients; a recorded pass, which a step may follow, calls this."""
    _of_trained.clear()


def forget() -> None:
    """Drops everything that is kept."""
    _of_frozen.clear()
    _of_trained.clear()
