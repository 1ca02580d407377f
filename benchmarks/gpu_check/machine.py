"""The machine: what it is, what is installed, and what it can do at best."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Iterator

import torch

from benchmarks.ceilings import ceilings
from benchmarks.gpu_check.journal import FIGURE, SKIPPED, Finding
from benchmarks.gpu_check.session import Session, Task
from benchmarks.place import versions
from hnkernels.triton.cards import CARDS
from hnkernels.triton.direct import route
from hnkernels.triton.target import target_of

PHASE = "machine"


def tasks() -> Iterable[tuple[str, Task]]:
    """What there is, then what it can do."""
    return [("installed", _installed), ("card", _card), ("ceilings", _ceilings)]


def _installed(session: Session) -> Iterator[Finding]:
    yield Finding(PHASE, "versions", FIGURE, note=f"{versions()}, {platform.platform()}")
    yield Finding(PHASE, "launches", FIGURE, note=route())


def _card(session: Session) -> Iterator[Finding]:
    target = target_of(session.place.device)
    known = "its tiles are chosen by the model" if target.name in CARDS else "unknown to the model: rules of thumb"
    yield Finding(PHASE, "card", FIGURE, note=f"{session.place.machine}, {target.name}; {known}")
    if session.rehearsed:
        yield Finding(PHASE, "driver", SKIPPED, note="needs a GPU")
        return
    properties = torch.cuda.get_device_properties(0)
    yield Finding(PHASE, "memory", FIGURE, properties.total_memory, "B")
    yield Finding(PHASE, "processors", FIGURE, properties.multi_processor_count, "1")
    yield Finding(PHASE, "driver", FIGURE, note=_driver())


def _driver() -> str:
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    command = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return f"CUDA {torch.version.cuda}, driver, clock and power: {said.strip()}"
    except (OSError, subprocess.SubprocessError):
        return f"CUDA {torch.version.cuda}; nvidia-smi does not answer"


def _ceilings(session: Session) -> Iterator[Finding]:
    if session.rehearsed:
        yield Finding(PHASE, "ceilings", SKIPPED, note="needs a GPU")
        return
    for row in ceilings(session.place, seconds=2.0):
        yield Finding(PHASE, row.mode, FIGURE, row.value, row.unit)
