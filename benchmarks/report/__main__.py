"""``python -m benchmarks.report [--check]``: writes pages, pictures and the tables of docs/ from the rows in
benchmarks/results/; with ``--check`` only says what is stale, and exits with 1 if something is."""

from __future__ import annotations

import argparse
import sys

from benchmarks.report import documents


def main(arguments: list[str]) -> int:
    """Writes or checks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is stale")
    if parser.parse_args(arguments).check:
        stale = documents.stale()
        for name in stale:
            print(f"{name} is not what benchmarks/results/ says; run `make report`")
        return int(bool(stale))
    for folder in documents.folders():
        documents.write(folder)
    for file in documents.texts():
        file.write_text(documents.filled(file.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
