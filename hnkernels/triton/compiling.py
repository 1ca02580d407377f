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

    The compiler is told the architecture alone. An MI300A, or a part of a partitioned MI300X, has fewer of them: every
    tile is computed there too, but neighbours may then run further apart than without this.
    """
    return tl.constexpr(_XCDS.get(getattr(_options(_semantic, _builder), "arch", ""), 1))


def wait_for_launches_before(_semantic: Any = None, _builder: Any = None) -> None:
    """Every kernel begins with it. With the option ``launch_pdl`` (programmatic dependent launch; ``launch`` sets it)
    the next kernel of the stream may be set up from here on, beside this one; without it this is nothing.

    No memory is touched that another kernel has a hand in, for the wait comes first: before the first load and store of
    every thread, and before any return. It ends when the kernel before has ended, with all its stores in sight. That
    one had itself waited for the one before it, and so on: what any earlier launch wrote can be read, and what it read
    can be written, also where memory is given out again. A kernel that signals nothing, such as PyTorch's, signals by
    its end; one that is launched without the option begins when all before it have ended.
    """
    if getattr(_options(_semantic, _builder), "launch_pdl", False):
        _semantic.grid_dependency_launch_dependents()
        _semantic.grid_dependency_wait()


def _options(semantic: Any, builder: Any) -> Any:
    """What the kernel is compiled with; older versions of Triton pass the builder."""
    return None if semantic is builder else (builder or semantic.builder).options


xcds.__triton_builtin__ = wait_for_launches_before.__triton_builtin__ = True  # type: ignore[attr-defined]
