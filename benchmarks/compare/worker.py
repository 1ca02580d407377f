"""The process that one version runs in: builds a case when told to, and times one call when told to.

Requests and answers are lines of JSON. It is quiet between them, so that the other version has the machine to itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

OURS = ("portable", "triton", "text alone", "checkpointing")
"""The providers in which the versions may differ."""

CONTROLS = ("reference", "einsum", "bare")
"""The same code on both sides, the first one there is: what it differs by is noise."""


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
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.compare.worker", device], cwd=folder, env=environment, text=True,
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


def main(device: str) -> None:
    """Answers until its input ends."""
    import torch

    import hnkernels
    from benchmarks import checking, modes, place, registry, timing

    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may write there
    where = place.here(device)
    torch.set_num_threads(place.THREADS)
    clock = timing.cuda_seconds if where.kind == "cuda" else timing.cpu_seconds
    known = {case.name: case for case in registry.cases(where)}
    calls: dict[str, modes.Call] = {}

    def build(name: str) -> dict[str, Any]:
        calls.clear()
        torch._dynamo.reset()
        torch.manual_seed(0)
        case = known[name]
        try:
            sides = case.benchmark.build(case.shape, where, case.mode)
            chosen = _chosen(list(sides.ways))
            calls.update({p: modes.MODES[case.mode](sides.ways[p], sides.upstream) for p in chosen})
            results = {p: call() for p, call in calls.items()}
            least = checking.MODEL_TOLERANCE[where.dtype]
            compared = {p: r for p, r in results.items() if p not in sides.unchecked}
            wrong = {}
            if chosen[0] in compared:
                verdicts = checking.check(compared, compared[chosen[0]], chosen[0], least, most=least)
                wrong = {p: v.error for p, v in verdicts.items() if not v.green}
            return {"providers": chosen, "fault": f"wrong: {wrong}" if wrong else None}
        except Exception as fault:  # an older version may lack what the benchmark needs
            return {"providers": [], "fault": f"{type(fault).__name__}: {fault}"}

    print(json.dumps(str(Path(hnkernels.__file__).resolve().parents[1])), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = build(request["build"]) if "build" in request else clock([calls[request["time"]]])
        print(json.dumps(answer), file=answers, flush=True)


def _chosen(providers: Sequence[str]) -> list[str]:
    """The control, then ours."""
    control = [name for name in CONTROLS if name in providers][:1]
    return [*control, *(name for name in providers if name in OURS)]


if __name__ == "__main__":
    main(*sys.argv[1:])
