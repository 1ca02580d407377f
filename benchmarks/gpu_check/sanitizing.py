"""The small cases under NVIDIA's ``compute-sanitizer``, where it is installed: reads and writes out of bounds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.gpu_check.journal import RIGHT, SKIPPED, WRONG, Finding
from benchmarks.gpu_check.session import Session, Task

PHASE = "sanitized"

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


def tasks() -> Iterator[tuple[str, Task]]:
    """One for every tool."""
    for tool in TOOLS:
        yield tool, lambda session, tool=tool: _sanitize(tool, session)


def _sanitize(tool: str, session: Session) -> Iterator[Finding]:
    program = shutil.which("compute-sanitizer")
    if session.rehearsed or program is None:
        yield Finding(PHASE, tool, SKIPPED, note="needs a GPU" if session.rehearsed else "compute-sanitizer not found")
        return
    command = [program, "--tool", tool, "--error-exitcode", "3", sys.executable, "-c", SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(session.clock.left_in_phase(), 30))
    outcome = RIGHT if done.returncode == 0 else WRONG
    yield Finding(PHASE, tool, outcome, note="; ".join((done.stdout + done.stderr).strip().splitlines()[-3:]))
