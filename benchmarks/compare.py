"""``python -m benchmarks.compare REF [name …]``: this version against another one, interleaved on the same machine.

Both versions of the library are checked out, each in a folder with the same benchmarks, and run in processes of their
own (``Worker``): each builds a case when told to, and times one call when told to; requests and answers are lines of
JSON, and between them it is quiet, so that the other version has the machine to itself. Prints the new version's time
over the old one's for every case; exits with 1 if something became slower by more than 5 % beyond the noise.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import hnkernels
from benchmarks.cases import MODEL_TOLERANCE, MODES, Call, cases, check
from benchmarks.measuring import clock
from benchmarks.rows import THREADS, here

NAMES = ("projection", "recompute", "affine", "cross-attention", "cross-attention, kept", "lowrank")
"""Compared if no others are named: the operations, which are soon done."""

OURS = ("portable", "triton", "text alone", "checkpointing")
"""The providers in which the versions may differ."""

CONTROLS = ("reference", "einsum", "bare")
"""The same code on both sides, the first one there is: what it differs by is noise."""

PAIRS = 3
"""Of fresh processes: what memory a process got is luck that lasts as long as it does."""

ROUNDS = 7
SECONDS = 1.5
"""Of a case in a pair: as many rounds as fit, at least ``ROUNDS``."""

THRESHOLD = 0.05
"""A smaller change is none."""

ROOT = Path(__file__).parents[1]
_SAME = ("benchmarks", "reference")
"""Taken from the present version on both sides: only the library differs."""


@dataclass(frozen=True)
class Pair:
    """Timings of one pair of fresh processes, round by round, in turn.

    Attributes:
        old, new: seconds of the provider in question.
        control_old, control_new: of code that is the same in both.
    """

    old: Sequence[float]
    new: Sequence[float]
    control_old: Sequence[float]
    control_new: Sequence[float]

    @property
    def change(self) -> float:
        """Logarithm of the ratio of medians, above 0 where the new version is slower."""
        return math.log(statistics.median(self.new) / statistics.median(self.old))

    @property
    def control(self) -> float:
        """The same of the code that did not change."""
        return math.log(statistics.median(self.control_new) / statistics.median(self.control_old))


@dataclass(frozen=True)
class Verdict:
    """What the pairs say together.

    Attributes:
        ratio: the new version's time over the old one's, the median of the pairs.
        noise: by how much the control, or the ratio itself from pair to pair, strays: a share.
        word: ``"slower"``, ``"faster"`` or ``"same"``.
    """

    ratio: float
    noise: float
    word: str


def judge(pairs: Sequence[Pair]) -> Verdict:
    """A change counts if it is beyond the threshold by more than the noise, and every pair shows its direction."""
    changes = [pair.change for pair in pairs]
    change = statistics.median(changes)
    spread = (max(changes) - min(changes)) / 2
    noise = max(spread, *(abs(pair.control) for pair in pairs))
    one_way = all(c > 0 for c in changes) or all(c < 0 for c in changes)
    counts = one_way and abs(change) > math.log1p(THRESHOLD) + noise
    word = "same" if not counts else "slower" if change > 0 else "faster"
    return Verdict(math.exp(change), math.expm1(noise), word)


Pairs = dict[tuple[str, str], list[Pair]]
"""Case and provider → what each pair of processes found."""


def main(arguments: Sequence[str]) -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("ref", help="the version to compare with: a commit, branch or tag")
    parser.add_argument("names", nargs="*", metavar="name", help="benchmarks; the operations if none is given")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    try:
        names = [case.name for case in cases(here(options.device), options.names or NAMES)]
        with tempfile.TemporaryDirectory() as folder, side_by_side(options.ref, Path(folder)) as sides:
            timings, faults = _run(names, sides, options.device)
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


def _run(names: Sequence[str], sides: tuple[Path, Path], device: str) -> tuple[Pairs, dict[str, str]]:
    timings: Pairs = {}
    faults: dict[str, str] = {}
    with tqdm(total=PAIRS * len(names), unit="case") as progress:
        for _ in range(PAIRS):
            old, new = (Worker(side, device) for side in sides)
            for name in names:
                progress.set_description(name)
                fault = _compare(name, old, new, timings)
                if fault is not None:
                    faults[name] = fault
                progress.update()
            old.close(), new.close()
    return timings, faults


def _compare(name: str, old: Worker, new: Worker, timings: Pairs) -> str | None:
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


class VersionError(ValueError):
    """A version that cannot be checked out."""


@contextmanager
def side_by_side(ref: str, folder: Path, root: Path = ROOT) -> Iterator[tuple[Path, Path]]:
    """Two folders to run ``python -m benchmarks…`` in: with the library as of ``ref``, and as it is now.

    What is now includes what is not committed. The worktrees go away at the end.

    Raises:
        VersionError: ``ref`` names no commit, or there are files that git does not know.
    """
    old = _commit(ref, root)
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", "hnkernels", *_SAME).split()
    if unknown:
        raise VersionError(f"git does not know {', '.join(unknown)}; `git add` what belongs to this version")
    new = _git(root, "stash", "create") or _commit("HEAD", root)
    trees = [folder / "tree-old", folder / "tree-new"]
    try:
        for tree, commit in zip(trees, (old, new), strict=True):
            _git(root, "worktree", "add", "--quiet", "--detach", str(tree), commit)
        sides = []
        for name, tree in zip(("old", "new"), trees, strict=True):
            side = folder / name
            side.mkdir()
            (side / "hnkernels").symlink_to(tree / "hnkernels")
            for package in _SAME:
                (side / package).symlink_to(trees[1] / package)
            sides.append(side)
        yield sides[0], sides[1]
    finally:
        for tree in trees:
            if tree.exists():
                _git(root, "worktree", "remove", "--force", str(tree))


def _commit(ref: str, root: Path) -> str:
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    except subprocess.CalledProcessError:
        raise VersionError(f"{ref!r} names no commit here; accepted is what `git rev-parse` accepts") from None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


class Worker:
    """A version's process, seen from outside.

    Args:
        folder: to run in.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        RuntimeError: the process ended by itself, with its last word; as all methods do.
    """

    def __init__(self, folder: Path, device: str = "cpu"):
        self._side = folder.name
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_WAIT_POLICY": "PASSIVE"}
        self._words = tempfile.TemporaryFile("w+")  # noqa: SIM115  it lives as long as the process
        command = [sys.executable, "-c", f"from benchmarks.compare import work; work({device!r})"]
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words,
        )  # fmt: skip
        self.library = self._ask()

    def build(self, case: str) -> tuple[list[str], str | None]:
        """Builds a case: the providers that it can time, or none of them and why."""
        answer = self._ask(build=case)
        return answer["providers"], answer["fault"]

    def seconds(self, provider: str) -> float:
        """One call's."""
        return self._ask(time=provider)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()
        self._words.close()

    def _ask(self, **request: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended; its last word is read below
            if request:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._words.seek(0)
            last = ["without a word", *self._words.read().strip().splitlines()][-1]
            raise RuntimeError(f"the process of the {self._side} version ended: {last}")
        return json.loads(line)


def work(device: str) -> None:
    """What a worker's process does: answers until its input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may write there
    where = here(device)
    torch.set_num_threads(THREADS)
    seconds = clock(where)
    known = {case.name: case for case in cases(where)}
    calls: dict[str, Call] = {}

    def build(name: str) -> dict[str, Any]:
        calls.clear()
        torch._dynamo.reset()
        torch.manual_seed(0)
        case = known[name]
        try:
            comparison = case.benchmark.build(case.shape, where, case.mode)
            chosen = _chosen(list(comparison.providers))
            calls.update({p: MODES[case.mode](comparison.providers[p], comparison.upstream) for p in chosen})
            results = {p: call() for p, call in calls.items()}
            least = MODEL_TOLERANCE[where.dtype]
            compared = {p: r for p, r in results.items() if p not in comparison.unchecked}
            wrong = {}
            if chosen[0] in compared:
                verdicts = check(compared, compared[chosen[0]], chosen[0], least, most=least)
                wrong = {p: v.error for p, v in verdicts.items() if not v.green}
            return {"providers": chosen, "fault": f"wrong: {wrong}" if wrong else None}
        except Exception as fault:  # an older version may lack what the benchmark needs
            return {"providers": [], "fault": f"{type(fault).__name__}: {fault}"}

    print(json.dumps(str(Path(hnkernels.__file__).resolve().parents[1])), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = build(request["build"]) if "build" in request else seconds([calls[request["time"]]])
        print(json.dumps(answer), file=answers, flush=True)


def _chosen(providers: Sequence[str]) -> list[str]:
    """The control, then ours."""
    control = [name for name in CONTROLS if name in providers][:1]
    return [*control, *(name for name in providers if name in OURS)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
