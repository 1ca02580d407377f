"""``python -m benchmarks [name …]``: runs the benchmarks, prints their table, writes it to benchmarks/results/
and, after a full run, into the README."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks import cross_attention, first_linear, lowrank, self_attention, unet
from benchmarks.result import markdown, update_readme, write_results

BENCHMARKS = {
    "cross-attention": cross_attention.run,
    "cross-attention-xl": cross_attention.run_xl,
    "self-attention": self_attention.run,
    "first-linear": first_linear.run,
    "lowrank": lowrank.run,
    "sampling": unet.run_sampling,
    "fused": unet.run_fused,
    "training": unet.run_training,
}


def main(names: list[str]) -> None:
    """Runs the named benchmarks, or all."""
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    torch.set_num_threads(2)
    results = []
    for name in names or BENCHMARKS:
        print(f"running {name} …", file=sys.stderr)
        results += BENCHMARKS[name]()
    print("\n".join(markdown(results)))
    if not names:
        here = Path(__file__).parent
        write_results(results, here / "results")
        update_readme(results, here.parent / "README.md")


if __name__ == "__main__":
    main(sys.argv[1:])
