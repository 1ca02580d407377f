"""Values that are computed once and kept for as long as the tensors they were made from stay as they are."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")


class Snapshot:
    """What some tensors were at one moment: the same objects, in the same storage, in the same version.

    Autograd's version counter sees every in-place operation, an optimiser's step and ``load_state_dict`` included.
    What it does not see is a write through ``tensor.data`` and the step of an optimiser with ``fused=True``; whoever
    does that has to drop the value by hand.
    Tensors made in inference mode carry no version, so that a snapshot of one is never current.
    """

    def __init__(self, tensors: Sequence[Tensor], extra: Hashable = None):
        self._extra = extra
        self._states = [
            None if t.is_inference() else (weakref.ref(t), t._version, _storage(t), t.requires_grad) for t in tensors
        ]

    def is_current(self, tensors: Sequence[Tensor], extra: Hashable = None) -> bool:
        """Whether these are the tensors of the snapshot, unchanged since."""
        return (
            extra == self._extra
            and len(tensors) == len(self._states)
            and all(
                state is not None
                and state[0]() is t
                and state[1] == t._version
                and state[2] == _storage(t)
                and state[3] == t.requires_grad
                for state, t in zip(self._states, tensors, strict=True)
            )
        )


class Memo(Generic[T]):
    """One such value. A deep copy or a pickle of it starts empty: the copied tensors are other tensors."""

    def __init__(self) -> None:
        self._kept: tuple[Snapshot, T, int] | None = None  # one object, so that no thread sees half of another's

    def get(self, tensors: Sequence[Tensor], compute: Callable[[], T], extra: Hashable = None) -> T:
        """The kept value if ``tensors`` and ``extra`` are what it was made from, else ``compute()``, which is kept.

        A kept tensor that its receiver has written into is made again.
        """
        kept = self._kept
        if kept is not None and _is_current(kept, tensors, extra):
            return kept[1]
        value = _outside_inference_mode(compute)
        self._kept = Snapshot(tensors, extra), value, version_of(value)
        return value

    def is_current(self, tensors: Sequence[Tensor], extra: Hashable = None) -> bool:
        """Whether the kept value is what ``get`` would return."""
        kept = self._kept
        return kept is not None and _is_current(kept, tensors, extra)

    def peek(self) -> T | None:
        """The kept value, current or not."""
        return None if self._kept is None else self._kept[1]

    def clear(self) -> None:
        """Forgets the value."""
        self._kept = None

    def __deepcopy__(self, memo: dict) -> Memo[T]:
        return Memo()

    def __reduce__(self):
        return Memo, ()


def _is_current(kept: tuple[Snapshot, object, int], tensors: Sequence[Tensor], extra: Hashable) -> bool:
    snapshot, value, version = kept
    return snapshot.is_current(tensors, extra) and version_of(value) == version


@lru_cache
def forget_after_steps(forget: Callable[[], None]) -> None:
    """Calls ``forget`` after every step of any optimiser, from now on.

    The step of one with ``fused=True`` leaves no trace in the versions of its parameters, and these may have been
    frozen when something was made of them, and be frozen again when it is asked for.
    """
    register_optimizer_step_post_hook(lambda *_: forget())


def _storage(tensor: Tensor) -> tuple[object, object]:
    if torch.compiler.is_compiling():  # Dynamo cannot trace a storage reference
        return tensor.data_ptr(), 0
    # An address would not do: .half() and then .float() often land where the first storage was.
    return StorageWeakRef(tensor.untyped_storage()), tensor.storage_offset()


def version_of(value: object) -> int:
    """A number that changes when a tensor, or one of several, is written into; of inference tensors always 0."""
    if torch.compiler.is_compiling():
        return 0
    if isinstance(value, (tuple, list)):
        return sum(map(version_of, value))
    if isinstance(value, dict):
        return sum(map(version_of, value.values()))
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _outside_inference_mode(compute: Callable[[], T]) -> T:
    # An inference tensor carries no version, and no recorded pass could use it later.
    if not torch.is_inference_mode_enabled():
        return compute()
    with torch.inference_mode(False), torch.no_grad():
        return compute()
