"""Triton's interpreter, quicker by half and more: what it works out again at every operation is remembered.

At every call of a device function it replaces the functions of ``triton.language``: once a launch is enough. Types and
shapes, which are checked each time a value is made, are few. And where it checks sums and products of integers for
overflow it makes tensors of its own; the same check needs an array alone.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import triton.language as tl
from triton.language import semantic
from triton.runtime import interpreter


def install() -> None:
    """Puts it in place for this process; from Triton 3.6 on, for older interpreters work otherwise."""
    if not hasattr(interpreter, "_LangPatchScope"):
        return
    for package in (tl, tl.core, tl.math, tl.tensor, getattr(tl.core, "tensor_descriptor_base", tl.tensor)):
        _builtins(package)  # while nothing is replaced yet
    interpreter._patch_builtin = _patch_builtin
    interpreter._patch_attr = _patch_attr
    interpreter._patch_lang = lambda fn: _Nothing() if _Patched.running else _Patched()
    interpreter._get_np_dtype = _numpy_dtype
    tl.core._unwrap_if_constexpr = _unwrap
    tl.core.dtype.__eq__ = _equal_types
    tl.core.tensor.__init__ = _init_tensor
    tl.core.block_type.__init__ = _init_block
    _Semantic.binary_op_sanitize_overflow_impl = _check_overflow
    _Semantic.broadcast_impl_value = _broadcast
    _Semantic.cast = _cast
    _Semantic.computation_type_impl = _computation_type


# The functions of the language


@lru_cache
def _builtins(package: object) -> list[str]:
    return [name for name in dir(package) if tl.core.is_builtin(getattr(package, name))]


def _patch_builtin(package, builder, *scope) -> None:
    for name in _builtins(package):
        member = getattr(package, name)
        if tl.core.is_builtin(member):  # it may have been replaced already
            interpreter._patch_attr(package, name, member, builder, *scope)


_CHECKS_ITS_CALLER = tl.core.builtin(lambda: None).__code__


def _patch_attr(package, name, member, builder, scope) -> None:
    """Gives the interpreter to a function of the language, without asking whether it was given."""
    function = member.__wrapped__ if getattr(member, "__code__", None) is _CHECKS_ITS_CALLER else member
    its_own = interpreter.interpreter_semantic

    def interpreted(*args, **kwargs):
        kwargs["_semantic"] = its_own
        return function(*args, **kwargs)

    scope.set_attr(package, name, interpreted)


_patch_lang = interpreter._patch_lang
_EVERY_KERNEL = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
"""Stands for a function whose module knows the language by both names that a device function's may."""


class _Patched:
    """The language as the interpreter has it, while a kernel runs."""

    running = False

    def __init__(self):
        self.scope = _patch_lang(_EVERY_KERNEL)
        _Patched.running = True

    def restore(self) -> None:
        _Patched.running = False
        self.scope.restore()


class _Nothing:
    """What a device function that a kernel calls has to put back."""

    def restore(self) -> None:
        pass


# Types and values

_original_numpy_dtype = interpreter._get_np_dtype
_numpy_dtype_of_scalar = lru_cache(_original_numpy_dtype)


def _numpy_dtype(dtype):
    scalar = dtype.element_ty if type(dtype) is tl.block_type else dtype
    return _numpy_dtype_of_scalar(scalar) if type(scalar) is tl.dtype else _original_numpy_dtype(dtype)


_original_init_tensor = tl.core.tensor.__init__
_shapes: dict[tuple, tuple] = {}


def _init_tensor(self, handle, type) -> None:
    key = tuple(type.shape) if type.is_block() else ()
    if key in _shapes:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = _shapes[key]
    else:
        _original_init_tensor(self, handle, type)
        _shapes[key] = self.shape, self.numel


_original_init_block = tl.core.block_type.__init__
_blocks: dict[tuple, tuple] = {}


def _init_block(self, element_ty, shape) -> None:
    key = (element_ty.name, *shape)
    if key in _blocks:
        self.element_ty = element_ty
        self.shape, self.numel, self.name = _blocks[key]
    else:
        _original_init_block(self, element_ty, shape)
        _blocks[key] = self.shape, self.numel, self.name


_original_unwrap = getattr(tl.core, "_unwrap_if_constexpr", None)
_NEVER_WRAPPED = {tl.tensor, tl.dtype, tl.block_type, int, float, bool, str, type(None)}


def _unwrap(value):
    return value if type(value) in _NEVER_WRAPPED else _original_unwrap(value)


_original_equal_types = tl.core.dtype.__eq__


def _equal_types(self, other) -> bool:
    return self is other or _original_equal_types(self, other)


# What both operands of an operation become

_Semantic = getattr(semantic, "TritonSemantic", None)
_original_broadcast = getattr(_Semantic, "broadcast_impl_value", None)
_original_cast = getattr(_Semantic, "cast", None)
_original_computation_type = getattr(_Semantic, "computation_type_impl", None)
_computation_types: dict[tuple, tl.dtype] = {}


def _broadcast(self, left, right):
    a, b = left.type, right.type
    if type(a) is tl.block_type and type(b) is tl.block_type and a.shape.values == b.shape.values:
        return left, right
    return _original_broadcast(self, left, right)


def _cast(self, value, dtype, fp_downcast_rounding=None):
    if value.type.scalar is dtype.scalar:
        return value
    return _original_cast(self, value, dtype, fp_downcast_rounding)


def _computation_type(self, a, a_is_scalar, b, b_is_scalar, div_or_mod):
    key = a.name, a_is_scalar, b.name, b_is_scalar, div_or_mod
    if key not in _computation_types:
        _computation_types[key] = _original_computation_type(self, a, a_is_scalar, b, b_is_scalar, div_or_mod)
    return _computation_types[key]


_EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def _check_overflow(self, left, right, operation) -> None:
    """Raises ``AssertionError`` where a sum, a difference or a product of integers does not fit into its type."""
    if left.type.scalar.int_bitwidth < 64:
        exact = _EXACT[operation.__name__](left.handle.data, right.handle.data, dtype=np.int64)
        limits = np.iinfo(left.handle.data.dtype)
        fits = exact.size == 0 or (limits.min <= exact.min() and exact.max() <= limits.max)
        assert fits, f"{left.type.scalar} overflow detected for operation {operation.__name__}"
