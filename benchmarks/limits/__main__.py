"""``python -m benchmarks.limits``: writes benchmarks/results/any/modelled.csv, and prints tables.

Takes about a minute, most of it for compiling the reference.
"""

from __future__ import annotations

from pathlib import Path

import torch
import triton

from benchmarks.limits import choices
from benchmarks.limits.tables import MODES, READ, chosen, model, read, read_heading, times
from benchmarks.rows import stamped, write

FILE = Path(__file__).parents[1] / "results" / "any" / "modelled.csv"

if __name__ == "__main__":
    selected = chosen()
    modelled = [row for case in selected for row in model(case)]
    found = [read(case, mode) for case in selected if case.benchmark in READ for mode in MODES]
    compiled = [row for rows, _ in found for row in rows]
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    tiles = choices.rows()
    write(stamped([*modelled, *tiles, *compiled], "any", versions, ""), FILE)
    lines = [*times(modelled), "", *choices.table(tiles), *read_heading(), *(line for _, of in found for line in of)]
    print("\n".join(lines))
