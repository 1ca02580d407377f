"""Peak memory on a CPU: what a process of its own has held after a call of one provider. Linux only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import modes, registry
from benchmarks.place import THREADS, here


def peak(case: registry.Case, provider: str) -> int:
    """Peak resident bytes of a fresh process that does nothing else."""
    what = [case.benchmark.name, case.mode, str(case.shape), provider]
    command = [sys.executable, "-m", "benchmarks.resident", *what]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout.splitlines()[-1])


def main(name: str, mode: str, shape: str, provider: str) -> None:
    """Prints the peak resident bytes of this process after a call."""
    place = here()
    torch.set_num_threads(THREADS)
    case = next(c for c in registry.cases(place, [name]) if c.mode == mode and str(c.shape) == shape)
    sides = case.benchmark.build(case.shape, place, mode)
    call = modes.MODES[mode](sides.ways[provider], sides.upstream)
    call()
    # Not getrusage: its figure starts from that of the parent process, which may be large.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps(int(line.split()[1]) * 1024))


if __name__ == "__main__":
    main(*sys.argv[1:])
