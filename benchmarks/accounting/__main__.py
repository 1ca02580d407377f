"""``python -m benchmarks.accounting``: counts all cases, writes benchmarks/results/any/counted.csv, prints the tables.

Takes about a minute, nearly all of it for compiling the reference.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.accounting.figures import count, markdown
from benchmarks.rows import write

FILE = Path(__file__).parents[1] / "results" / "any" / "counted.csv"

if __name__ == "__main__":
    rows = count()
    write(rows, FILE)
    print("\n".join(markdown(rows)))
