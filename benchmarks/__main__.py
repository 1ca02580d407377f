"""``python -m benchmarks [name …] [--device cuda]``: runs the benchmarks and prints their tables.

A run of all of them also writes benchmarks/results/<machine>/ and brings the tables of docs/ up to date.
``python -m benchmarks host`` and ``python -m benchmarks loop`` are others, of what the library costs the host; see
``host.py``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import host
from benchmarks import rows as results
from benchmarks.cases import Case, cases
from benchmarks.measuring import ceilings, measure
from benchmarks.rows import THREADS, Environment, Row, here, today, versions


def main(arguments: Sequence[str]) -> int:
    """Runs what is asked for; 1 if a provider was wrong."""
    if arguments and arguments[0] in ("host", "loop"):  # they compare other things than providers, with other options
        return (host.main if arguments[0] == "host" else host.loop)(arguments[1:])
    from benchmarks import report  # it needs Triton, whose absence the host's benchmark tells itself

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="benchmarks to run; all if none is given")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", help="fp32, fp16 or bf16; fp32 on a CPU and fp16 on a GPU if not given")
    parser.add_argument("--seconds", type=float, help="to spend on a case; what the benchmark says if not given")
    parser.add_argument("--rows", type=Path, help="file to write the rows to, and nothing else")
    options = parser.parse_args(arguments)
    try:
        environment = here(options.device, options.dtype)
        chosen = cases(environment, options.names)
    except ValueError as fault:
        print(fault, file=sys.stderr)
        return 2
    if environment.kind != "cuda":
        torch.set_num_threads(THREADS)
    found, wrong = run(chosen, environment, options.seconds)
    if options.rows:
        results.write(found, options.rows)
        return int(wrong)
    full = not options.names
    if full and environment.kind != "interpreter":
        found = [*ceilings(environment), *found]
    if full and environment.kind == "cpu":
        found += _interpreted()
    found = results.stamped(found, environment.machine, versions(), today())
    if full and environment.kind != "interpreter":
        results.write(found, results.RESULTS / environment.name / "results.csv")
        report.main([])
    print(*report.pages(results.RESULTS / environment.name, found).values())
    return int(wrong)


def run(chosen: Sequence[Case], environment: Environment, seconds: float | None) -> tuple[list[Row], bool]:
    """The rows of the cases, and whether a provider was wrong: such a one has no time among them."""
    found: list[Row] = []
    absent: dict[tuple[str, str], int] = {}
    wrong = False
    for case in (progress := tqdm(chosen, unit="case")):
        progress.set_description(case.name)
        measurement = measure(case, environment, seconds)
        for provider, verdict in measurement.verdicts.items():
            if not verdict.green:
                wrong = True
                tqdm.write(
                    f"RED {case.name}: {provider} has an error of {verdict.error:.1e}, above {verdict.allowed:.1e}"
                )
        for what in measurement.absent.items():
            absent[what] = absent.get(what, 0) + 1
        found += measurement.rows(environment)
    for (provider, reason), count in absent.items():
        print(f"not run in {count} of {len(chosen)} cases: {provider}: {reason}", file=sys.stderr)
    return found, wrong


def _interpreted() -> list[Row]:
    """The kernels in Triton's interpreter, at small shapes, in another process: Triton decides that when imported."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        command = [sys.executable, "-m", "benchmarks", "--seconds", "0", "--rows", str(file)]
        subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
        return results.read(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
