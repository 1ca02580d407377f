"""``python -m benchmarks.report [--check]``: writes pages, pictures and the tables of docs/ from the rows in
benchmarks/results/. With ``--check`` it writes nothing: it names every file whose figures the tree would not give now,
with the command that renews it, and exits with 1 if there is one."""

from __future__ import annotations

import argparse
import sys

from benchmarks.report import check, documents


def main(arguments: list[str]) -> int:
    """Writes or checks; 2 if nothing can be checked here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is stale")
    if parser.parse_args(arguments).check:
        return _check()
    for folder in documents.folders():
        documents.write(folder)
    for file in documents.texts():
        file.write_text(documents.filled(file.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def _check() -> int:
    others = check.other_versions()
    if others:
        print(f"{'; '.join(others)}: install the versions of constraints.txt to check them", file=sys.stderr)
        return 2
    found = 0
    for file, command in check.stale():
        print(f"{file} is stale: run `{command}`", flush=True)
        found += 1
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
