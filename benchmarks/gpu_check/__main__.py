"""``python -m benchmarks.gpu_check [--minutes 8] [--out DIR]``: is everything right on this GPU, and how fast?

Nothing is downloaded, and nothing but torch, triton, numpy, safetensors and pytest is needed. What is found lies in the
folder at once: ``gpu-check.md`` to read and to send, and ``findings.csv``. Exits with 1 if something is wrong. With
TRITON_INTERPRET=1 it is rehearsed on the CPU, at small sizes and without times that mean anything.

Before kernels are judged there are the machine, its kernels compiled beforehand, and small cases sanitized. Triton
compiles a kernel when it is first launched, one after the other, which would be most of the check's time. What is
compiled in several processes beforehand lies in its cache when the check comes to it. A process of its own does this,
for those that it forks must not have touched the GPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.compiled import in_processes
from benchmarks.gpu_check import (
    FIGURE,
    PAGE,
    RIGHT,
    SKIPPED,
    WRONG,
    Clock,
    Finding,
    Journal,
    Session,
    Task,
    correctness,
    page_lines,
    speed,
    write_page,
)
from benchmarks.machine_code import Configuration, compiled, distinct
from benchmarks.measuring import ceilings
from benchmarks.rows import DTYPES, here, versions
from hnkernels import Hypernetwork, explain
from hnkernels.triton.cards import CARDS
from hnkernels.triton.direct import route
from hnkernels.triton.launch import Call, capturing
from hnkernels.triton.support import interpreting
from hnkernels.triton.target import TARGETS, target_of

MACHINE, SANITIZED = "machine", "sanitized"

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

SHARES = {"warming": 0.25, "right": 0.45, "fast": 0.55, "predicted": 0.5, "tuned": 1.0}
"""Of the time that is left when a phase begins."""


def main(arguments: Sequence[str]) -> int:
    """Checks; 1 if something is wrong, 2 if there is nothing to check on."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="for all of it (8)")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder for what is found (gpu-check)")
    parser.add_argument("--sanitize", action="store_true", help="run the small cases under compute-sanitizer too")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes must be positive, not {options.minutes:g}")
    share_cache()
    clock = Clock(60 * options.minutes)
    try:
        environment = here("cpu" if interpreting() else "cuda")
    except ValueError as fault:
        print(f"{fault}; or rehearse without a GPU: TRITON_INTERPRET=1", file=sys.stderr)
        return 2
    try:
        journal = Journal(options.out, partial(write_page, folder=options.out, ended=False))
    except OSError as fault:
        print(f"--out {options.out}: {fault.strerror}; give a folder that can be written to", file=sys.stderr)
        return 2
    wait = torch.cuda.synchronize if environment.kind == "cuda" else (lambda: None)
    session = Session(environment, clock, journal, wait)
    if not session.rehearsed:
        warm(session, SHARES["warming"] * clock.left())
    session.run(MACHINE, 1.0, facts())
    if options.sanitize:
        session.run(SANITIZED, SHARES["right"], sanitizing())
    session.run(correctness.PHASE, SHARES["right"], correctness.tasks(environment))
    session.run(speed.FAST, SHARES["fast"], speed.comparisons(environment))
    session.run(speed.PREDICTED, SHARES["predicted"], speed.predictions())
    session.run(speed.TUNED, SHARES["tuned"], speed.tunings(environment))
    write_page(journal.findings, options.out, ended=True)
    print(f"{page_lines(journal.findings, True)[2]} See {options.out / PAGE}")
    return int(bool(journal.wrong))


def facts() -> list[tuple[str, Task]]:
    """What there is, then what it can do."""
    return [("installed", _installed), ("card", _card), ("ceilings", _ceilings)]


def _installed(session: Session) -> Iterator[Finding]:
    yield Finding(MACHINE, "versions", FIGURE, note=f"{versions()}, {platform.platform()}")
    yield Finding(MACHINE, "launches", FIGURE, note=route())


def _card(session: Session) -> Iterator[Finding]:
    target = target_of(session.environment.device)
    known = "its tiles are chosen by the model" if target.name in CARDS else "unknown to the model: rules of thumb"
    yield Finding(MACHINE, "card", FIGURE, note=f"{session.environment.machine}, {target.name}; {known}")
    if session.rehearsed:
        yield Finding(MACHINE, "driver", SKIPPED, note="needs a GPU")
        return
    properties = torch.cuda.get_device_properties(0)
    yield Finding(MACHINE, "memory", FIGURE, properties.total_memory, "B")
    yield Finding(MACHINE, "processors", FIGURE, properties.multi_processor_count, "1")
    yield Finding(MACHINE, "driver", FIGURE, note=_driver())


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
        yield Finding(MACHINE, "ceilings", SKIPPED, note="needs a GPU")
        return
    for row in ceilings(session.environment, seconds=2.0):
        yield Finding(MACHINE, row.mode, FIGURE, row.value, row.unit)


def warm(session: Session, seconds: float) -> None:
    """Compiles kernels beforehand, in other processes, for at most so many seconds."""
    target = target_of(session.environment.device)
    if target.name not in TARGETS:
        session.journal.add(Finding(MACHINE, "compiled beforehand", SKIPPED, note=f"{target.name} is unknown"))
        return
    compiling = f"from benchmarks.gpu_check.__main__ import compile_beforehand as f; f({target.name!r}, {seconds})"
    command = [sys.executable, "-c", compiling]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
        said = (done.stdout.strip() or done.stderr.strip()[-300:]).replace("\n", "; ")
    except subprocess.TimeoutExpired:
        said = "was not over in time"
    session.journal.add(Finding(MACHINE, "compiled beforehand", FIGURE, note=said))


def share_cache() -> None:
    """Makes kernels that are compiled here those that launches find: called before Triton is asked for any."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))


def calls(target: str) -> Iterator[tuple[str, Call]]:
    """The launches of what is checked and compared, most telling first, planned without data."""
    for dtype in ("fp16", "bf16"):
        for layer in correctness.LAYERS:
            net = Hypernetwork((layer.width,), **layer.options)
            for training in (True, False):
                with capturing() as captured:
                    explain(
                        *net[layer.width], layer.rows, layer.columns, training, dtype=DTYPES[dtype], target=target,
                        train_projections=training,
                    )  # fmt: skip
                for call in captured:
                    yield f"{layer}, {dtype}", call


def compile_beforehand(target: str, seconds: float) -> None:
    """Compiles until everything is, or the time is over; says how much."""
    share_cache()
    began = time.monotonic()
    work = distinct(calls(target), TARGETS[target])
    done = 0
    for _ in in_processes(_compile, work):
        done += 1
        if time.monotonic() - began > seconds:
            break
    print(f"{done} of {len(work)} kernels in {time.monotonic() - began:.0f} s by {os.cpu_count()} processes")


def _compile(config: Configuration) -> None:
    torch.set_num_threads(1)
    try:
        compiled(config)
    except Exception as fault:  # the launch will say the same, where it is a finding
        print(f"{config.name}: {str(fault).splitlines()[0]}", file=sys.stderr)


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
