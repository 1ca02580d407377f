"""A device that is not there: the whole way from a call to a launch, on CPU tensors, without the launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hnkernels.errors import InputError
from hnkernels.triton.support import HAS_TRITON, interpreting
from hnkernels.triton.target import TARGETS, Target, pretending

_SHARED_MEMORY: dict[int | str, int] = {80: 166912, 90: 232448, 100: 232448}  # bytes; NVIDIA's others have 101,376


@contextmanager
def pretend_device(target: str = "sm_90", poison: bool = True) -> Iterator[None]:
    """Within it CPU tensors take the path of tensors on this target, up to launches that do nothing.

    Arguments are bound, kernels compiled for the target, programs planned and run, all as on a device. What kernels
    should have returned is NaN, so that it cannot be mistaken for a result. For tests and benchmarks of what the host
    does.

    Args:
        target: one of ``hnkernels.triton.target.TARGETS``.
        poison: whether to write the NaN. That takes time of its own, which a device would not; without it what is
            returned is whatever lies in memory.

    Raises:
        ValueError: Triton is not installed or interprets kernels, or the target is unknown.
    """
    if not HAS_TRITON:
        raise InputError("pretend_device needs Triton, which is not installed: pip install triton")
    if interpreting():
        raise InputError("under TRITON_INTERPRET=1 kernels run on CPU tensors already; unset it to pretend a device")
    if target not in TARGETS:
        raise InputError(f"target {target!r} is unknown; accepted are {', '.join(TARGETS)}")
    from triton.runtime import driver

    place = "_active" if hasattr(driver, "_active") else "active"  # up to Triton 3.4
    before = getattr(driver, place)
    driver.set_active(_Driver(TARGETS[target]))
    try:
        with pretending(TARGETS[target], poison):
            yield
    finally:
        setattr(driver, place, before)


class _Driver:
    """What Triton asks of a driver, answered for a target. Its device is the target's name, of which no cache knows."""

    def __init__(self, target: Target):
        from triton.backends.compiler import GPUTarget

        self._name = f"pretended {target.name}"
        self._target = GPUTarget(target.backend, target.arch, target.warp_size)
        self.utils = _Utils(65536 if target.backend == "hip" else _SHARED_MEMORY.get(target.arch, 101376))
        self.launcher_cls = _Launcher

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> str:
        return self._name

    def get_current_stream(self, device: Any) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class _Utils:
    def __init__(self, shared: int):
        self._shared = shared

    def get_device_properties(self, device: Any) -> dict[str, int]:
        return {"max_shared_mem": self._shared}

    def load_binary(self, *_: Any) -> tuple:
        """Nothing is loaded: module, function, registers, spills and, from Triton 3.4 on, threads."""
        from hnkernels.triton.direct import VERSION

        return (None, 0, 0, 0, 1024) if VERSION >= (3, 4) else (None, 0, 0, 0)


class _Launcher:
    def __init__(self, source: Any, metadata: Any):
        pass

    def __call__(self, *given: Any) -> None:
        """Launches nothing; hooks of profilers are called."""
        launch_metadata, enter, leave = given[6:9]
        if enter is not None:
            enter(launch_metadata)
        if leave is not None:
            leave(launch_metadata)
