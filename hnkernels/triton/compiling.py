"""What kernels ask the compiler about what it compiles for; the interpreter, which compiles nothing, answers as a plain
device would.

Triton calls these as it compiles, as it calls the functions of its own language.
"""

from __future__ import annotations

from typing import Any

import triton.language as tl

_XCDS = {"gfx942": 8}


def xcds(_semantic: Any = None, _builder: Any = None) -> tl.constexpr:
    """Over how many dies with an L2 cache each the device spreads neighbouring programs: the XCDs of an MI300X, else 1.

    The compiler is told the architecture alone. An MI300A, or a part of a partitioned MI300X, has fewer of them, and
    only loses what the order of programs is to gain.
    """
    return tl.constexpr(_XCDS.get(getattr(_options(_semantic, _builder), "arch", ""), 1))


def _options(semantic: Any, builder: Any) -> Any:
    """What the kernel is compiled with; older versions of Triton pass the builder."""
    return None if semantic is builder else (builder or semantic.builder).options


xcds.__triton_builtin__ = True  # type: ignore[attr-defined]
