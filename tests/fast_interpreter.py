"""Triton's interpreter, quicker: most of its time goes into looking up, at every call of a device function, which
functions of ``triton.language`` it has to replace. They are the same every time."""

from __future__ import annotations

from functools import lru_cache

import triton.language as tl
from triton.runtime import interpreter


@lru_cache
def _builtins(package: object) -> list[str]:
    return [name for name in dir(package) if tl.core.is_builtin(getattr(package, name))]


def _patch_builtin(package, builder, *scope) -> None:
    for name in _builtins(package):
        member = getattr(package, name)
        if tl.core.is_builtin(member):  # an outer call may have replaced it already
            interpreter._patch_attr(package, name, member, builder, *scope)


def install() -> None:
    """Puts it in place for this process."""
    packages = [tl, tl.core, tl.math, tl.tensor, getattr(tl.core, "tensor_descriptor_base", tl.tensor)]
    for package in packages:
        _builtins(package)  # while nothing is replaced yet
    interpreter._patch_builtin = _patch_builtin
