"""``copy.deepcopy`` of modules, four times as fast: most of what a module holds is an empty dict of hooks.

A class that says itself how it is copied or pickled is left to that.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn

_CONSTANT = {bool, int, type(None)}
_CONTAINERS = {dict, OrderedDict, list, set}
_OWN = ("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__slots__")


def install() -> None:
    """Puts it in place for this process."""
    nn.Module.__deepcopy__ = _deepcopy  # type: ignore[attr-defined]


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> Any:
    kinds = [vars(kind) for kind in type(self).__mro__ if kind not in nn.Module.__mro__]
    if any(name in kind for kind in kinds for name in _OWN):
        return copy._reconstruct(self, memo, *self.__reduce_ex__(4))  # type: ignore[attr-defined]
    twin = memo[id(self)] = object.__new__(type(self))
    for name, value in vars(self).items():
        if type(value) in _CONSTANT:
            twin.__dict__[name] = value
        elif type(value) in _CONTAINERS and not value:
            twin.__dict__[name] = type(value)()
        else:
            twin.__dict__[name] = copy.deepcopy(value, memo)
    return twin
