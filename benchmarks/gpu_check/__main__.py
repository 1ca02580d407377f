"""``python -m benchmarks.gpu_check [--minutes 8] [--out DIR]``: is everything right on this GPU, and how fast?

Nothing is downloaded, and nothing but torch, triton, numpy, safetensors and pytest is needed. What is found lies in the
folder at once: ``gpu-check.md`` to read and to send, and ``findings.csv``. Exits with 1 if something is wrong. With
TRITON_INTERPRET=1 it is rehearsed on the CPU, at small sizes and without times that mean anything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_check import correctness, machine, speed
from benchmarks.gpu_check.session import PAGE, Clock, Journal, Session, page_lines, write_page
from benchmarks.rows import here
from hnkernels.triton.support import interpreting

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
    machine.share_cache()
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
        machine.warm(session, SHARES["warming"] * clock.left())
    session.run(machine.PHASE, 1.0, machine.tasks())
    if options.sanitize:
        session.run(machine.SANITIZED, SHARES["right"], machine.sanitizing())
    session.run(correctness.PHASE, SHARES["right"], correctness.tasks(environment))
    session.run(speed.FAST, SHARES["fast"], speed.comparisons(environment))
    session.run(speed.PREDICTED, SHARES["predicted"], speed.predictions())
    session.run(speed.TUNED, SHARES["tuned"], speed.tunings(environment))
    write_page(journal.findings, options.out, ended=True)
    print(f"{page_lines(journal.findings, True)[2]} See {options.out / PAGE}")
    return int(bool(journal.wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
