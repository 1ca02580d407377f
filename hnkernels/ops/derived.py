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


# The same, of values that a CUDA graph was captured with: it reads them for as long as it is replayed.
_in_graphs: WeakIdKeyDictionary = WeakIdKeyDictionary()

_epoch = 0


def derived(
    anchor: Tensor, purpose: Hashable, tensors: Sequence[Tensor], compute: Callable[[], T], extra: Hashable = None
) -> T:
    """``compute()``, kept with ``anchor`` for as long as ``tensors`` and ``extra`` stay as they are.

    While a CUDA graph is captured a kept value is used, and stays alive as long as the anchor; one that is not there
    yet becomes a part of the graph, and is not kept.
    """
    if torch.compiler.is_compiling():  # a compiled graph cannot look into the cache
        return compute()
    memos = _kept.get(anchor)
    if capturing(anchor):
        memo = None if memos is None else memos.get(purpose)
        if memo is None or not memo.is_current(tensors, extra):
            return compute()
        value = memo.peek()
        _in_graphs.setdefault(anchor, []).append(value)
        return value
    forget_after_steps(forget)
    if memos is None:
        memos = _kept[anchor] = OrderedDict()
    memo = memos.setdefault(purpose, Memo())
    memos.move_to_end(purpose)
    while len(memos) > _AT_MOST:
        memos.popitem(last=False)
    return memo.get(tensors, compute, extra)


def capturing(t: Tensor) -> bool:
    """Whether a CUDA graph is being captured of what is done with this tensor."""
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


def keep_for_graphs(anchors: Sequence[Tensor | None], values: Sequence[Tensor]) -> None:
    """Keeps values that a captured graph reads as long as the first of the anchors."""
    anchor = next((t for t in anchors if t is not None), None)
    if anchor is not None:
        _in_graphs.setdefault(anchor, []).append(values)


def epoch() -> int:
    """Another number after everything was dropped."""
    return _epoch


def forget() -> None:
    """Drops everything that is kept, and the plans with it; what captured graphs read stays."""
    global _epoch
    _epoch += 1
    _kept.clear()
