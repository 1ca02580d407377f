"""Where benchmarks run: the device, the dtype, and what hnkernels takes there."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from hnkernels.triton.support import HAS_TRITON, interpreting

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
THREADS = 2
"""On a CPU; what the table was measured with can be had on any machine."""


@dataclass(frozen=True)
class Environment:
    """A device to run on.

    Attributes:
        kind: ``"cpu"``, ``"cuda"``, or ``"interpreter"``: CPU tensors, with the kernels in Triton's interpreter.
        dtype: of the networks and their inputs: a key of ``DTYPES``.
    """

    kind: str
    dtype: str

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.kind == "cuda" else "cpu")

    @property
    def library(self) -> str:
        """The provider that ``backend="auto"`` is here."""
        return "portable" if self.kind == "cpu" else "triton"

    @property
    def name(self) -> str:
        """Of the folder for its results: ``"amd-epyc-2-threads"``, ``"nvidia-h100-80gb-hbm3"``."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.machine.lower()).split())

    @property
    def machine(self) -> str:
        """What its maker calls it; of a CPU with the threads that are used."""
        return torch.cuda.get_device_name() if self.kind == "cuda" else f"{_cpu()}, {THREADS} threads"

    def tensor(self, *shape: int, scale: float = 1.0, grad: bool = False) -> Tensor:
        """Normally distributed numbers."""
        values = torch.randn(shape, device=self.device) * scale
        return values.to(DTYPES[self.dtype]).requires_grad_(grad)


def here(device: str = "cpu", dtype: str | None = None) -> Environment:
    """The environment that a command is to run in.

    Raises:
        ValueError: there is no such device here, or the dtype is unknown.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is unknown; accepted are cpu and cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device 'cuda' was asked for and PyTorch finds no CUDA or ROCm device here; `make bench` runs on the CPU"
        )
    if device == "cuda" and interpreting():
        raise ValueError("TRITON_INTERPRET=1 is set, and the interpreter takes CPU tensors; unset it to run on a GPU")
    dtype = dtype or ("fp16" if device == "cuda" else "fp32")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; accepted are {', '.join(DTYPES)}")
    return Environment("interpreter" if device == "cpu" and interpreting() else device, dtype)


def versions() -> str:
    """Of what the figures depend on: ``"hnkernels 0.1.0, torch 2.13.0+cpu, triton 3.9.0, Python 3.11.9"``."""
    import hnkernels

    words = [f"hnkernels {hnkernels.__version__}", f"torch {torch.__version__}"]
    words += [f"triton {version('triton')}"] if HAS_TRITON else []
    return ", ".join([*words, f"Python {platform.python_version()}"])


def today() -> str:
    return date.today().isoformat()


def _cpu() -> str:
    """The model's name where the system tells it, else the architecture's."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"{platform.machine()} CPU"
