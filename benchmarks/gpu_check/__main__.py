"""``python -m benchmarks.gpu_check [--minutes 8] [--out DIR]``: is everything right on this GPU, and how fast?

Nothing is downloaded, and nothing but torch, triton, numpy, safetensors and pytest is needed. What is found lies in the
folder at once: ``gpu-check.md`` to read and to send, and ``findings.csv``. Exits with 1 if something is wrong. With
TRITON_INTERPRET=1 it is rehearsed on the CPU, at small sizes and without times that mean anything.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_check import comparisons, correctness, machine, prediction, report, tuning
from benchmarks.gpu_check.clock import Clock
from benchmarks.gpu_check.journal import FIGURE, SKIPPED, Finding, Journal
from benchmarks.gpu_check.session import Session
from benchmarks.gpu_check.warming import share_cache
from benchmarks.place import here
from hnkernels.triton.support import interpreting
from hnkernels.triton.target import TARGETS, target_of

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
        place = here("cpu" if interpreting() else "cuda")
    except ValueError as fault:
        print(f"{fault}; or rehearse without a GPU: TRITON_INTERPRET=1", file=sys.stderr)
        return 2
    try:
        journal = Journal(options.out, partial(report.write, folder=options.out, ended=False))
    except OSError as fault:
        print(f"--out {options.out}: {fault.strerror}; give a folder that can be written to", file=sys.stderr)
        return 2
    wait = torch.cuda.synchronize if place.kind == "cuda" else (lambda: None)
    session = Session(place, clock, journal, wait)
    if not session.rehearsed:
        _warm(session)
    session.run("machine", 1.0, machine.tasks())
    if options.sanitize:
        from benchmarks.gpu_check import sanitizing

        session.run(sanitizing.PHASE, SHARES["right"], sanitizing.tasks())
    session.run(correctness.PHASE, SHARES["right"], correctness.tasks(place))
    session.run(comparisons.PHASE, SHARES["fast"], comparisons.tasks(place))
    session.run(prediction.PHASE, SHARES["predicted"], prediction.tasks())
    session.run(tuning.PHASE, SHARES["tuned"], tuning.tasks(place))
    report.write(journal.findings, options.out, ended=True)
    print(f"{report.lines(journal.findings, True)[2]} See {options.out / report.NAME}")
    return int(bool(journal.wrong))


def _warm(session: Session) -> None:
    """Compiles beforehand, in other processes."""
    target = target_of(session.place.device)
    if target.name not in TARGETS:
        session.journal.add(Finding("machine", "compiled beforehand", SKIPPED, note=f"{target.name} is unknown"))
        return
    seconds = SHARES["warming"] * session.clock.left()
    command = [sys.executable, "-m", "benchmarks.gpu_check.warming", target.name, str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
        said = (done.stdout.strip() or done.stderr.strip()[-300:]).replace("\n", "; ")
    except subprocess.TimeoutExpired:
        said = "was not over in time"
    session.journal.add(Finding("machine", "compiled beforehand", FIGURE, note=said))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
