"""What comes before kernels are judged: the machine, its kernels compiled beforehand, and small cases sanitized.

Triton compiles a kernel when it is first launched, one after the other, which would be most of the check's time. What
is compiled here, in several processes, lies in its cache when the check comes to it:
``python -m benchmarks.gpu_check.machine <target> <seconds>``. A process of its own does this, for those that it forks
must not have touched the GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from benchmarks.compilation import Configuration, compiled, distinct
from benchmarks.gpu_check.correctness import LAYERS
from benchmarks.gpu_check.session import FIGURE, RIGHT, SKIPPED, WRONG, Finding, Session, Task
from benchmarks.measuring import ceilings
from benchmarks.rows import DTYPES, versions
from hnkernels import Hypernetwork, explain
from hnkernels.triton.cards import CARDS
from hnkernels.triton.direct import route
from hnkernels.triton.launch import Call, capturing
from hnkernels.triton.target import TARGETS, target_of

PHASE, SANITIZED = "machine", "sanitized"

TOOLS = ("memcheck", "racecheck")

SMALL = """
import torch, hnkernels as hn
for options in ({"activation": "relu"}, {"activation": "silu", "layer_norm": True}):
    for width, rows, columns in ((76, 33, 40), (64, 128, 64)):
        net = hn.Hypernetwork((width,), **options).half().cuda().train()
        x = torch.randn(1, rows, width, device="cuda", dtype=torch.float16, requires_grad=True)
        w = [torch.randn(columns, width, device="cuda", dtype=torch.float16, requires_grad=True) for _ in "kv"]
        sum(t.sum() for t in hn.hyper_kv(x, *net[width], *w, backend="triton")).backward()
torch.cuda.synchronize()
"""

_work: list[Configuration] = []  # of the forked processes; a kernel does not pickle


def tasks() -> Iterable[tuple[str, Task]]:
    """What there is, then what it can do."""
    return [("installed", _installed), ("card", _card), ("ceilings", _ceilings)]


def _installed(session: Session) -> Iterator[Finding]:
    yield Finding(PHASE, "versions", FIGURE, note=f"{versions()}, {platform.platform()}")
    yield Finding(PHASE, "launches", FIGURE, note=route())


def _card(session: Session) -> Iterator[Finding]:
    target = target_of(session.environment.device)
    known = "its tiles are chosen by the model" if target.name in CARDS else "unknown to the model: rules of thumb"
    yield Finding(PHASE, "card", FIGURE, note=f"{session.environment.machine}, {target.name}; {known}")
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
    for row in ceilings(session.environment, seconds=2.0):
        yield Finding(PHASE, row.mode, FIGURE, row.value, row.unit)


def warm(session: Session, seconds: float) -> None:
    """Compiles kernels beforehand, in other processes, for at most so many seconds."""
    target = target_of(session.environment.device)
    if target.name not in TARGETS:
        session.journal.add(Finding(PHASE, "compiled beforehand", SKIPPED, note=f"{target.name} is unknown"))
        return
    command = [sys.executable, "-m", "benchmarks.gpu_check.machine", target.name, str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
        said = (done.stdout.strip() or done.stderr.strip()[-300:]).replace("\n", "; ")
    except subprocess.TimeoutExpired:
        said = "was not over in time"
    session.journal.add(Finding(PHASE, "compiled beforehand", FIGURE, note=said))


def share_cache() -> None:
    """Makes kernels that are compiled here those that launches find: called before Triton is asked for any."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))


def calls(target: str) -> Iterator[tuple[str, Call]]:
    """The launches of what is checked and compared, most telling first, planned without data."""
    for dtype in ("fp16", "bf16"):
        for layer in LAYERS:
            net = Hypernetwork((layer.width,), **layer.options)
            for training in (True, False):
                with capturing() as captured:
                    explain(
                        *net[layer.width], layer.rows, layer.columns, training, dtype=DTYPES[dtype], target=target,
                        train_projections=training,
                    )  # fmt: skip
                for call in captured:
                    yield f"{layer}, {dtype}", call


def main(arguments: list[str]) -> int:
    """Compiles until everything is, or the time is over; says how much."""
    target, seconds = arguments[0], float(arguments[1])
    share_cache()
    began = time.monotonic()
    _work[:] = distinct(calls(target), TARGETS[target])
    done = 0
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        for _ in pool.imap_unordered(_compile, range(len(_work))):
            done += 1
            if time.monotonic() - began > seconds:
                pool.terminate()
                break
    print(f"{done} of {len(_work)} kernels in {time.monotonic() - began:.0f} s by {os.cpu_count()} processes")
    return 0


def _compile(index: int) -> None:
    torch.set_num_threads(1)
    try:
        compiled(_work[index])
    except Exception as fault:  # the launch will say the same, where it is a finding
        print(f"{_work[index].name}: {str(fault).splitlines()[0]}", file=sys.stderr)


def sanitizing() -> Iterator[tuple[str, Task]]:
    """The small cases under NVIDIA's ``compute-sanitizer``, where it is installed: reads and writes out of bounds."""
    for tool in TOOLS:
        yield tool, lambda session, tool=tool: _sanitize(tool, session)


def _sanitize(tool: str, session: Session) -> Iterator[Finding]:
    program = shutil.which("compute-sanitizer")
    if session.rehearsed or program is None:
        yield Finding(
            SANITIZED, tool, SKIPPED, note="needs a GPU" if session.rehearsed else "compute-sanitizer not found"
        )
        return
    command = [program, "--tool", tool, "--error-exitcode", "3", sys.executable, "-c", SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(session.clock.left_in_phase(), 30))
    outcome = RIGHT if done.returncode == 0 else WRONG
    yield Finding(SANITIZED, tool, outcome, note="; ".join((done.stdout + done.stderr).strip().splitlines()[-3:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
