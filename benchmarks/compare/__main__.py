"""``python -m benchmarks.compare REF [name …]``: this version against another one, interleaved on the same machine.

Prints the new version's time over the old one's for every case; exits with 1 if something became slower by more than
5 % beyond the noise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.compare.verdict import Pair, Verdict, judge
from benchmarks.compare.versions import side_by_side
from benchmarks.compare.worker import Worker
from benchmarks.place import here
from benchmarks.registry import cases

NAMES = ("projection", "recompute", "affine", "cross-attention", "cross-attention, kept", "lowrank")
"""Compared if no others are named: the operations, which are soon done."""

PAIRS = 3
"""Of fresh processes: what memory a process got is luck that lasts as long as it does."""

ROUNDS = 7
SECONDS = 1.5
"""Of a case in a pair: as many rounds as fit, at least ``ROUNDS``."""

Timings = dict[tuple[str, str], list[Pair]]
"""Case and provider → what each pair of processes found."""


def main(arguments: Sequence[str]) -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("ref", help="the version to compare with: a commit, branch or tag")
    parser.add_argument("names", nargs="*", metavar="name", help="benchmarks; the operations if none is given")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of fresh processes")
    options = parser.parse_args(arguments)
    try:
        names = [case.name for case in cases(here(options.device), options.names or NAMES)]
        with tempfile.TemporaryDirectory() as folder, side_by_side(options.ref, Path(folder)) as sides:
            timings, faults = _run(names, sides, options.device, options.pairs)
    except (ValueError, RuntimeError) as fault:
        print(fault, file=sys.stderr)
        return 2
    verdicts = {key: judge(pairs) for key, pairs in timings.items()}
    print("\n".join(table(verdicts, faults, options.ref)))
    return int(any(v.word == "slower" for v in verdicts.values()) or any("new version" in f for f in faults.values()))


def table(verdicts: dict[tuple[str, str], Verdict], faults: dict[str, str], ref: str) -> list[str]:
    """As lines of Markdown."""
    lines = [
        f"Time of this version over that of {ref}, ratios of medians, measured in turn; below 1 is faster.",
        "",
        "| case | provider | new / old | noise | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (case, provider), v in verdicts.items():
        word = f"**{v.word}**" if v.word == "slower" else v.word
        lines.append(f"| {case} | {provider} | {v.ratio:.3f} | ± {100 * v.noise:.1f} % | {word} |")
    lines += [f"| {case} | – | – | – | not compared: {fault} |" for case, fault in faults.items()]
    return lines


def _run(names: Sequence[str], sides: tuple[Path, Path], device: str, pairs: int) -> tuple[Timings, dict[str, str]]:
    timings: Timings = {}
    faults: dict[str, str] = {}
    with tqdm(total=pairs * len(names), unit="case") as progress:
        for _ in range(pairs):
            old, new = (Worker(side, device) for side in sides)
            for name in names:
                progress.set_description(name)
                fault = _compare(name, old, new, timings)
                if fault is not None:
                    faults[name] = fault
                progress.update()
            old.close(), new.close()
    return timings, faults


def _compare(name: str, old: Worker, new: Worker, timings: Timings) -> str | None:
    """Adds one pair's timings of a case; or says why there are none."""
    built = {"old": old.build(name), "new": new.build(name)}
    for version, (_, fault) in built.items():
        if fault is not None:
            return f"in the {version} version {fault}"
    control, *ours = [p for p in built["new"][0] if p in built["old"][0]]
    found: dict[tuple[str, Worker], list[float]] = {(p, w): [] for p in (control, *ours) for w in (old, new)}
    started, index = time.perf_counter(), 0
    while index < ROUNDS or time.perf_counter() - started < SECONDS:
        for provider in (control, *ours):
            for worker in (old, new) if index % 2 else (new, old):
                found[provider, worker].append(worker.seconds(provider))
        index += 1
    for provider in ours:
        keys = ((provider, old), (provider, new), (control, old), (control, new))
        timings.setdefault((name, provider), []).append(Pair(*(found[key] for key in keys)))
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
