"""Kernels compiled beforehand, in several processes: ``python -m benchmarks.gpu_check.warming <target> <seconds>``.

Triton compiles a kernel when it is first launched, one after the other, which would be most of the check's time. What
is compiled here lies in its cache when the check comes to it. A process of its own does this, for those that it forks
must not have touched the GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.compiled.compilation import Configuration, compiled, distinct
from benchmarks.gpu_check.correctness import LAYERS
from benchmarks.place import DTYPES
from hnkernels import Hypernetwork, explain
from hnkernels.triton.launch import Call, capturing
from hnkernels.triton.target import TARGETS

_work: list[Configuration] = []  # of the forked processes; a kernel does not pickle


def share_cache() -> None:
    """Makes kernels that are compiled here those that launches find: called before Triton is asked for any."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))


def calls(target: str) -> Iterator[tuple[str, Call]]:
    """The launches of what is checked and compared, most telling first, planned without data."""
    for dtype in ("fp16", "bf16"):
        for layer in LAYERS:
            net = Hypernetwork((layer.width,), **layer.options)
            for training in (True, False):
                with capturing() as captured:
                    explain(
                        *net[layer.width], layer.rows, layer.columns, training, dtype=DTYPES[dtype], target=target,
                        train_projections=training,
                    )  # fmt: skip
                for call in captured:
                    yield f"{layer}, {dtype}", call


def main(arguments: list[str]) -> int:
    """Compiles until everything is, or the time is over; says how much."""
    target, seconds = arguments[0], float(arguments[1])
    share_cache()
    began = time.monotonic()
    _work[:] = distinct(calls(target), TARGETS[target])
    done = 0
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        for _ in pool.imap_unordered(_compile, range(len(_work))):
            done += 1
            if time.monotonic() - began > seconds:
                pool.terminate()
                break
    print(f"{done} of {len(_work)} kernels in {time.monotonic() - began:.0f} s by {os.cpu_count()} processes")
    return 0


def _compile(index: int) -> None:
    torch.set_num_threads(1)
    try:
        compiled(_work[index])
    except Exception as fault:  # the launch will say the same, where it is a finding
        print(f"{_work[index].name}: {str(fault).splitlines()[0]}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
