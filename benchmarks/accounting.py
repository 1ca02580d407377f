"""What eager PyTorch launches, moves and keeps, counted at the dispatcher; exact, on meta tensors too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Account:
    """Operations of eager PyTorch.

    Attributes:
        operations: names of the operators in order, views left out.
        bytes_moved: bytes read and written, each tensor of an operation once.
    """

    operations: list[str] = field(default_factory=list)
    bytes_moved: int = 0


class Counting(TorchDispatchMode):
    """Within it every operation that is not a view is entered in ``account``."""

    def __init__(self) -> None:
        super().__init__()
        self.account = Account()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(results) if isinstance(t, Tensor)]
        known = {_storage(t) for t in inputs}
        written = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
        made = any(_storage(t) not in known for t in outputs) and "empty" not in func.__name__
        if written or made:
            self.account.operations.append(str(func))
            self.account.bytes_moved += _unique_bytes(inputs) + _unique_bytes(outputs)
        return results


def saved_bytes(run: Callable[[], object], known: list[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of ``run``, each storage once, without those of ``known``."""
    ours = {_storage(t) for t in known}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if _storage(t) not in ours:
            kept[_storage(t)] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        alive = run()
    del alive  # until here: a storage's address is its name
    return sum(kept.values())


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _unique_bytes(tensors: list[Tensor]) -> int:
    sizes = {}
    for t in tensors:
        # What is expanded is read once.
        sizes[id(t)] = min(t.numel() * t.element_size(), t.untyped_storage().nbytes())
    return sum(sizes.values())
