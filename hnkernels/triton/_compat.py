"""What Triton's interpreter needs to give the values that the compiled kernels give, and what Triton 3.2 needs to
compile them, all in one place.

Under ``TRITON_INTERPRET=1`` (Triton 3.9) ``tl.dot`` multiplies the bit patterns of bf16 operands, and a conversion to
bf16 cuts bits off instead of rounding. The compiler of Triton 3.2 ends the process on sm_90 where an operand of a
product is a constant. Kernels call ``dot``, ``convert`` and ``add_columns`` of this module and know nothing of it. What
the interpreters of earlier versions lack is put in where they run.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import semantic

from hnkernels.triton.target import interpreting

INTERPRETED: bool = bool(triton.knobs.runtime.interpret) if hasattr(triton, "knobs") else interpreting()
"""Whether kernels of this process run in the interpreter; settled when Triton is imported."""

_INTERPRETED = tl.constexpr(INTERPRETED)

_TRITON_3_2 = triton.__version__.startswith("3.2.")
_CONSTANT_OPERANDS = tl.constexpr(not _TRITON_3_2)
_DOT_LACKS_DOUBLES = tl.constexpr(INTERPRETED and _TRITON_3_2)

QUERY_COMES_ALONG = not _TRITON_3_2
"""Whether the compiler gets through the kernel in which ``to_q`` comes along; that of Triton 3.2 ends the process."""

DEPENDENT_LAUNCHES = hasattr(getattr(semantic, "TritonSemantic", None), "grid_dependency_wait")
"""Whether the compiler knows programmatic dependent launch as an operation that no load passes: Triton 3.9."""


def _mend_interpreter() -> None:
    """Up to Triton 3.8: constants in bf16, and the bound of a loop as an integer with NumPy from 2.4 on."""
    from triton.runtime import interpreter

    builder, patch = interpreter.InterpreterBuilder, interpreter._patch_lang_tensor
    if hasattr(builder, "get_bf16"):
        return
    builder.get_bf16 = lambda self, value: self.create_fp_trunc(self.get_fp32(value), tl.bfloat16)

    def patched(tensor, *scope):
        patch(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patched


if INTERPRETED:
    _mend_interpreter()


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``a @ b + acc``. Shape: a [M, K], b [K, N], acc [M, N] in fp32 (float64 for float64 operands)."""
    if _INTERPRETED:
        a = a.to(acc.dtype)
        b = b.to(acc.dtype)
    if _DOT_LACKS_DOUBLES:  # tl.dot takes no float64 in the interpreter of Triton 3.2
        if acc.dtype == tl.float64:
            return acc + tl.sum(a[:, :, None] * b[None, :, :], axis=1)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def add_columns(x, ones, sums, PRECISION: tl.constexpr):
    """``sums + x @ ones``. Shape: x [M, K], ones [K, 16], sums [M, 16]."""
    if _CONSTANT_OPERANDS:
        return dot(x, ones, sums, PRECISION)
    return sums + tl.sum(x.to(sums.dtype), axis=1)[:, None]


@triton.jit
def convert(x, DTYPE: tl.constexpr):
    """``x`` in DTYPE, rounded to nearest even."""
    if _INTERPRETED:
        if tl.bfloat16 == DTYPE:
            if x.dtype != tl.bfloat16:
                x = x.to(tl.float32)
                bits = x.to(tl.uint32, bitcast=True)
                rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
                quiet_nan = (bits >> 16) | 0x40  # rounding a NaN up would carry into its exponent
                return tl.where(x == x, rounded, quiet_nan).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)
