"""``python -m benchmarks.compiled [--targets …] [--dtypes …]``: compiles every kernel for every target and prints
what the machine code says. A full run writes it to benchmarks/results/, and to hnkernels/triton/proven.csv which tiles
may be chosen. Exits with 1 if a kernel has a fault; one of tiles that are mere candidates is left out instead."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path

import torch

from benchmarks.compiled.cases import all_calls
from benchmarks.compiled.compilation import Configuration, distinct
from benchmarks.compiled.report import Row, accepted, markdown, row, write, write_proven
from benchmarks.compiled.sample import sample
from hnkernels.triton.target import TARGETS

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_work: list[Configuration] = []  # of a process of the pool; a kernel does not pickle
RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: list[str]) -> int:
    """Runs the matrix, or the part of it that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--sample", action="store_true", help="only the part that the tests compile")
    parser.add_argument("--out", type=Path, help="folder for compiled.csv and compiled.md")
    options = parser.parse_args(arguments)
    configurations = sample() if options.sample else _matrix(options.targets, options.dtypes)
    rows = []
    with multiprocessing.get_context("fork").Pool(initializer=_take, initargs=(configurations,)) as pool:
        for result in pool.imap(_compile, range(len(configurations)), chunksize=4):
            rows.append(result)
            if len(rows) % 100 == 0:
                print(f"{len(rows)} of {len(configurations)} compiled", file=sys.stderr)
    rows, tiles = accepted(rows)
    print("\n".join([*markdown(rows), *(str(r) for r in rows if r.faults)]))
    full = not options.sample and options.targets == list(TARGETS) and options.dtypes == list(DTYPES)
    if options.out or full:
        write(rows, options.out or RESULTS)
    if full:
        write_proven(tiles)
    return int(any(r.faults for r in rows))


def _take(configurations: list[Configuration]) -> None:
    _work[:] = configurations


def _compile(index: int) -> Row:
    return row(_work[index])


def _matrix(targets: list[str], dtypes: list[str]) -> list[Configuration]:
    chosen = [TARGETS[name] for name in targets]
    return [c for t in chosen for c in distinct(all_calls(t, [DTYPES[d] for d in dtypes]), t)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
