"""What inference computes once from parameters and keeps: casts, LayerNorm's vectors, composed and folded weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from hnkernels.ops.memo import Memo, forget_after_steps

T = TypeVar("T")

_AT_MOST = 4  # per anchor: a projection meets few chains, a parameter few dtypes

# Tensor → what was derived from it, by purpose. A cache and nothing more: gone with the tensor.
_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()


def derived(
    anchor: Tensor, purpose: Hashable, tensors: Sequence[Tensor], compute: Callable[[], T], extra: Hashable = None
) -> T:
    """``compute()``, kept with ``anchor`` for as long as ``tensors`` and ``extra`` stay as they are."""
    # A compiled graph cannot look into the cache, and what a captured one computes is not there yet.
    if torch.compiler.is_compiling() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        return compute()
    forget_after_steps(forget)
    memos = _kept.get(anchor)
    if memos is None:
        memos = _kept[anchor] = OrderedDict()
    memo: Memo[T] = memos.setdefault(purpose, Memo())
    memos.move_to_end(purpose)
    while len(memos) > _AT_MOST:
        memos.popitem(last=False)
    return memo.get(tensors, compute, extra)


def forget() -> None:
    """Drops everything that is kept."""
    _kept.clear()
