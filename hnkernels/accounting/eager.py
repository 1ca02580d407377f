"""What eager PyTorch launches, computes, moves and keeps, counted at the dispatcher; exact, on meta tensors too.

An operation counts once, however many kernels the device takes for it (``addmm`` with a whole matrix inside first
copies that on CUDA), and what an operation allocates and frees within itself is not seen: both in eager's favour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hnkernels.triton.launch import Launch

aten = torch.ops.aten

_OVERWRITING = (aten.copy_, aten.fill_, aten.zero_, aten.normal_, aten.uniform_, aten.random_, aten.bernoulli_)
"""They write into their first argument without reading it."""


@dataclass(frozen=True)
class Account:
    """What was done.

    Attributes:
        launches: operations in order, views and bare allocations left out.
        peak: the most bytes that were allocated at once, without what had been there before.
        saved: bytes kept for the backward pass, without parameters.
    """

    launches: tuple[Launch, ...] = ()
    peak: int = 0
    saved: int = 0

    @property
    def operations(self) -> list[str]:
        """Names of the operations in order."""
        return [launch.kernel for launch in self.launches]

    @property
    def flops(self) -> int:
        """Floating-point operations of all products, a multiply-add as two."""
        return sum(launch.flops for launch in self.launches)

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written, every byte once per operation and direction."""
        return sum(launch.bytes_read + launch.bytes_written for launch in self.launches)

    def __add__(self, later: Account) -> Account:
        """Both, one after the other; what the first one keeps is still there in the second one's peak."""
        return Account(self.launches + later.launches, max(self.peak, later.peak), max(self.saved, later.saved))


@dataclass
class _Memory:
    """The storages that were allocated, as long as they live."""

    alive: dict[int, tuple[StorageWeakRef, int]] = field(default_factory=dict)
    peak: int = 0

    def forget_the_dead(self) -> None:
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}

    def enter(self, tensors: Iterable[Tensor]) -> None:
        for t in tensors:
            storage = t.untyped_storage()
            # The weak reference keeps the address from being used again.
            self.alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))


class Counting(TorchDispatchMode):
    """Within it every operation that is not a view is entered in ``account``."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self._memory = _Memory()

    @property
    def account(self) -> Account:
        """What was done since the beginning, or since the last ``phase``."""
        return Account(tuple(self.launches), self._memory.peak)

    def phase(self) -> Account:
        """Ends a phase: its account. The next one starts with the memory that this one has left."""
        ended = self.account
        self.launches = []
        self._memory.forget_the_dead()
        self._memory.peak = 0
        self._memory.enter(())
        return ended

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._memory.forget_the_dead()
        results = func(*args, **kwargs)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        known = {_storage(t) for t in inputs}
        made = [t for t in tree_leaves(results) if isinstance(t, Tensor) and _storage(t) not in known]
        self._memory.enter(made)
        changed = _changed(func, args, kwargs)
        if changed or (made and "empty" not in func.__name__):
            skipped = {id(t) for t in changed} if _overwrites(func) else set()
            self.launches.append(
                Launch(
                    str(func),
                    1,
                    None,
                    _flops(func, args, kwargs, results),
                    unique_bytes(t for t in inputs if id(t) not in skipped),
                    unique_bytes([*made, *changed]),
                    product=_product(func, args),
                )
            )
        return results


def inference(run: Callable[[], object], counting: Callable[[], Counting] = Counting) -> Account:
    """The account of ``run`` without gradients, with everything in place that it keeps from one call to the next."""
    with torch.no_grad():
        run()
        with counting() as mode:
            alive = run()
    del alive
    return mode.account


def training(
    run: Callable[[], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    counting: Callable[[], Counting] = Counting,
) -> dict[str, Account]:
    """The accounts of ``"forward"``, ``"backward"`` and ``"forward + backward"``.

    The peak of the backward pass includes what the forward pass has left. The gradients of the results are given;
    those of inputs and parameters, where they are required, are made again.

    Args:
        run: what is differentiated.
        inputs: what it is applied to.
        parameters: trained ones and frozen ones; they do not count as saved.
    """
    saved = saved_bytes(run, parameters)
    results = run()
    gradients = [torch.empty_like(t) for t in results]
    for t in (*inputs, *parameters):
        t.grad = None
    del results
    with counting() as mode:
        results = run()
        forward = replace(mode.phase(), saved=saved)
        torch.autograd.backward(results, gradients)
        backward = mode.phase()
    return {"forward": forward, "backward": backward, "forward + backward": forward + backward}


def saved_bytes(run: Callable[[], object], known: Iterable[Tensor]) -> int:
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


def unique_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that these tensors occupy, those of several once; what is expanded occupies what it was expanded from."""
    spans: dict[int, set[tuple[int, int, int]]] = {}
    for t in tensors:
        if t.numel():
            elements, reach = 1, 1
            for size, stride in zip(t.shape, t.stride(), strict=True):
                if stride:
                    elements, reach = elements * size, reach + (size - 1) * stride
            width, begin = t.element_size(), int(t.storage_offset())
            span = (begin * width, (begin + reach) * width, min(elements, reach) * width)
            spans.setdefault(_storage(t), set()).add(span)
    return sum(map(_occupied, spans.values()))


def _occupied(spans: set[tuple[int, int, int]]) -> int:
    """Bytes of (begin, end, occupied) in one storage. Where they overlap, no more than there are."""
    total, (first, last, inside) = 0, (0, 0, 0)
    for begin, end, occupied in sorted(spans):
        if begin < last:
            last, inside = max(last, end), inside + occupied
        else:
            total += min(inside, last - first)
            first, last, inside = begin, end, occupied
    return total + min(inside, last - first)


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _changed(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that the operation writes into; not those of which it changes the shape alone."""
    changed: list[Tensor] = []
    if torch.Tag.inplace_view in func.tags:
        return changed
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            changed += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return changed


def _overwrites(func: Any) -> bool:
    return func.overloadpacket in _OVERWRITING or any(a.is_out for a in func._schema.arguments)


def _product(func: Any, args: Any) -> tuple[int, int, int, int] | None:
    """Batch, M, N and K of a product of matrices."""
    name = func.overloadpacket.__name__.rstrip("_")
    if name not in ("mm", "bmm", "addmm", "baddbmm", "_addmm_activation"):
        return None
    a, b = [t for t in args if isinstance(t, Tensor)][-2:]
    return (a.shape[0] if a.ndim == 3 else 1, a.shape[-2], b.shape[-1], a.shape[-1])


def _matrix_vector(matrix: Tensor) -> int:
    return 2 * matrix.numel()


def _flops(func: Any, args: Any, kwargs: Any, results: Any) -> int:
    """By PyTorch's own table, which has no operations in place and no matrix times vector."""
    packet = aten.addmm if func.overloadpacket is aten._addmm_activation else func.overloadpacket
    name = packet.__name__
    if name in ("mv", "addmv"):
        return _matrix_vector(args[0 if name == "mv" else 1])
    if packet not in flop_registry and name.endswith("_") and hasattr(aten, name[:-1]):
        packet = getattr(aten, name[:-1])
    return flop_registry[packet](*args, **kwargs, out_val=results) if packet in flop_registry else 0
