"""``python -m tests.fuzz [targets]``: many cases of each target, and what became of them.

A case is a seed and a number: ``python -m tests.fuzz pt --seed 3 --first 1234 --cases 1`` is one of them again.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.fuzz import guards
from tests.fuzz.campaign import Figures, attempt, case
from tests.fuzz.targets import NAMES, target

_SPARE = 8 << 30


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="target", help=f"which of {', '.join(NAMES)}; all without one")
    parser.add_argument("--cases", type=int, default=1000, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", type=Path, help="folder for cases that fail")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(NAMES):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; known are {', '.join(NAMES)}")
    torch.set_num_threads(1)
    guards.limit_memory(_SPARE)
    failed = 0
    print(f"{'target':<11}{'cases':>8}{'accepted':>10}{'failed':>8}{'slowest':>10}{'peak':>10}{'took':>8}  refused")
    for name in given.targets or NAMES:
        started = time.monotonic()
        figures = _run(name, given)
        took = time.monotonic() - started
        failed += len(figures.failed)
        refused = ", ".join(f"{kind} {count}" for kind, count in figures.refused.most_common())
        print(
            f"{name:<11}{figures.cases:>8}{figures.accepted:>10}{len(figures.failed):>8}"
            f"{figures.slowest * 1000:>7.0f} ms{guards.peak() >> 20:>6} MiB{took:>6.0f} s  {refused}",
            flush=True,
        )
    return 1 if failed else 0


def _run(name: str, given: Any) -> Figures:
    chosen, figures = target(name), Figures()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(given.first, given.first + given.cases):
            one = case(chosen, given.seed, number)
            before = len(figures.failed)
            attempt(chosen, one, figures)
            if len(figures.failed) > before:
                print(
                    f"{name} --seed {given.seed} --first {number} --cases 1: {figures.failed[-1][1]}", file=sys.stderr
                )
                if given.keep is not None:
                    given.keep.mkdir(parents=True, exist_ok=True)
                    data = one if isinstance(one, bytes) else repr(one).encode("utf-8", "backslashreplace")
                    (given.keep / f"{name}-{given.seed}-{number}").write_bytes(data)
    return figures


if __name__ == "__main__":
    sys.exit(main())
