"""What the kernels run on: the device at hand, one that is planned for without data, or one that is pretended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Target:
    """What the kernels are to run on.

    Attributes:
        backend: Triton's ``"cuda"``, ``"hip"``, ``"xpu"``, or ``"interpreter"``.
        arch: compute capability × 10 for CUDA, the name (``"gfx942"``) for HIP.
        processors: streaming multiprocessors or compute units.
    """

    backend: str
    arch: int | str = 0
    processors: int = 108
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", f"{self.backend} {self.arch} {self.processors}")

    @property
    def warp_size(self) -> int:
        """Threads of a warp: AMD's data center cards have wider ones."""
        return 64 if str(self.arch).startswith("gfx9") else 32

    @property
    def scarce_registers(self) -> bool:
        """Whether a thread has so few registers that large tiles leave none for much else: RDNA."""
        return self.backend == "hip" and not str(self.arch).startswith("gfx9")

    @property
    def launches_dependents(self) -> bool:
        """Whether a kernel is set up while the one before it runs: programmatic dependent launch.

        Not where there is tensor memory. One that waits already holds its part of it, and another library's kernel that
        signals before it has taken its own might wait for that in turn.
        """
        return self.backend == "cuda" and int(self.arch) // 10 in (9, 12)

    @property
    def name(self) -> str:
        """``"sm_90"``, ``"gfx942"`` …"""
        return f"sm_{self.arch}" if self.backend == "cuda" else str(self.arch or self.backend)


TARGETS = {
    t.name: t
    for t in (
        Target("cuda", 80, 108),
        Target("cuda", 86, 82),
        Target("cuda", 89, 128),
        Target("cuda", 90, 132),
        Target("cuda", 100, 148),
        Target("cuda", 120, 170),
        Target("hip", "gfx942", 304),
        Target("hip", "gfx1100", 96),
    )
}
"""The targets that the compile matrix covers, with the processors of their largest common card."""

_fp32_precision = getattr(torch._C, "_get_fp32_precision_getter", None)  # from PyTorch 2.9

_planned: ContextVar[Target] = ContextVar("planned", default=TARGETS["sm_80"])
_pretended: ContextVar[Target | None] = ContextVar("pretended", default=None)
_route: ContextVar[str] = ContextVar("route", default=os.environ.get("HNKERNELS_ROUTE") or "auto")
_poisoned: ContextVar[bool] = ContextVar("poisoned", default=False)


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@contextmanager
def planned_for(target: Target) -> Iterator[None]:
    """Within it the meta device stands for this target, so that its launches can be planned without it."""
    token = _planned.set(target)
    try:
        yield
    finally:
        _planned.reset(token)


@contextmanager
def pretending(target: Target, poison: bool) -> Iterator[None]:
    """Within it CPU tensors stand for tensors of this target; see ``testing.pretend_device``."""
    token, poisoned = _pretended.set(target), _poisoned.set(poison)
    try:
        yield
    finally:
        _pretended.reset(token)
        _poisoned.reset(poisoned)


poisoned = _poisoned.get
"""Whether what is returned on a pretended device is NaN."""

pretended = _pretended.get
"""The target that CPU tensors stand for now, or ``None``."""


def tf32_allowed() -> bool:
    """Whether the user allows TF32 in products of fp32 matrices."""
    # Reading the older setting raises once the newer one has been set.
    return torch._C._get_cublas_allow_tf32() if _fp32_precision is None else _fp32_precision("cuda", "matmul") == "tf32"


@contextmanager
def forced_route(route: str) -> Iterator[None]:
    """Within it this is the route that is asked for, whatever ``HNKERNELS_ROUTE`` says; see ``route.py``."""
    token = _route.set(route)
    try:
        yield
    finally:
        _route.reset(token)


asked_route = _route.get
"""The route that is asked for."""


def setting() -> tuple[str, tuple[str, bool] | None, bool, str]:
    """Everything that decides what is launched and is not among an operator's arguments."""
    pretended = _pretended.get()
    device = None if pretended is None else (pretended.key, _poisoned.get())
    return _planned.get().key, device, tf32_allowed(), _route.get()


def target_of(device: torch.device) -> Target:
    """What a device is. A meta device stands for an A100, or for what ``planned_for`` says."""
    if device.type == "meta":
        return _planned.get()
    return _pretended.get() or _present(device) if device.type == "cpu" else _present(device)


@lru_cache
def _present(device: torch.device) -> Target:
    if interpreting() or device.type == "cpu":
        return Target("interpreter", processors=1)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        if torch.version.hip:
            return Target("hip", properties.gcnArchName.split(":")[0], properties.multi_processor_count)
        major, minor = torch.cuda.get_device_capability(device)
        return Target("cuda", major * 10 + minor, properties.multi_processor_count)
    return Target(device.type, processors=64)
