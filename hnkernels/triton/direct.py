"""Calling a compiled kernel by itself: what Triton's own launch does after it has found the kernel, and nothing before.

``kernel[grid](...)`` binds, specializes and looks up 50 arguments at every launch: 30 microseconds of Python where a
compiled kernel's own launcher takes 3. It also returns the compiled kernel; what is kept of it is called from then on.
The layout of that call is known for the versions of Triton that were tried; for others, and where a kernel does not
look as expected, every launch stays Triton's own. ``route`` says which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton

from hnkernels.triton._compat import INTERPRETED
from hnkernels.triton.target import pretended

VERSION: tuple[int, int] = tuple(int(part) for part in triton.__version__.split(".")[:2])  # type: ignore[assignment]

_TRIED = ((3, 2), (3, 9))
"""The versions whose call was tried, first and last."""

_runtime = triton.knobs.runtime if hasattr(triton, "knobs") else None
_cuda_device = getattr(torch._C, "_cuda_getDevice", None)


def route() -> str:
    """``"direct"``, or why launches are Triton's own."""
    if INTERPRETED:
        return "interpreter"
    if not _TRIED[0] <= VERSION <= _TRIED[1]:
        first, last = (".".join(map(str, v)) for v in _TRIED)
        return f"Triton {triton.__version__} is not one of {first} to {last}, for which direct launches are known"
    return "direct"


_DIRECT = route() == "direct"


def usable(compiled: Sequence[Any]) -> bool:
    """Whether these compiled kernels can be called directly."""
    return _DIRECT and all(
        callable(getattr(kernel, "run", None)) and hasattr(kernel, "function") and hasattr(kernel, "packed_metadata")
        for kernel in compiled
    )


def entry(kernel: Any) -> tuple[Callable[..., Any], Any, Any]:
    """What a launch calls: the launcher, the function on the device, the metadata."""
    return kernel.run, kernel.function, kernel.packed_metadata


def positional(kernel: Any) -> list[str]:
    """The names of the arguments that the launcher takes, in order."""
    if VERSION >= (3, 3):
        return list(kernel.arg_names)
    return [p.name for p in kernel.params if not p.is_constexpr]


def hooked() -> bool:
    """Whether a profiler asks to be told of launches, which Triton's own launch does."""
    if _runtime is not None:
        enter, leave = _runtime.launch_enter_hook, _runtime.launch_exit_hook
    else:  # Triton 3.2 and 3.3
        from triton.compiler.compiler import CompiledKernel

        enter, leave = CompiledKernel.launch_enter_hook, CompiledKernel.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def current_device() -> int:
    """The number of the current accelerator."""
    return torch.accelerator.current_device_index() if _cuda_device is None else _cuda_device()


def stream_source() -> Callable[[int], Any]:
    """What returns the current stream of an accelerator, by its number, as launchers take it."""
    return _no_stream if pretended() is not None else triton.runtime.driver.active.get_current_stream


def _no_stream(index: int) -> int:
    return 0
