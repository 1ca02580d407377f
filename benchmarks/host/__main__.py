"""``python -m benchmarks host``: what calls cost the host, on a pretended device; about three minutes.

The first run compiles the kernels, which takes longer. ``--counted`` leaves out all that is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.host.lines import Line, counted, table, timed
from benchmarks.host.sides import TARGET, host_alone
from benchmarks.place import Place, today, versions

RESULTS = Path(__file__).parents[1] / "results"
_PLACE = Place("cpu", "fp32")


def main(arguments: Sequence[str]) -> int:
    """Prints the table; 2 where there is no device to be pretended."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks host", description=__doc__)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--counted", action="store_true", help="only the calls of functions, which are exact")
    only.add_argument("--write", action="store_true", help="write this machine's page in benchmarks/results/, too")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        try:
            stack.enter_context(host_alone())
        except ValueError as fault:
            print(fault, file=sys.stderr)
            return 2
        if options.counted:
            print("\n".join(table(counted())))
            return 0
        text = page([*timed(), *counted()])
    if options.write:
        (RESULTS / _PLACE.name / "host.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def page(lines: Sequence[Line]) -> str:
    """The page of a machine."""
    machine = _PLACE.machine.rsplit(",", 1)[0]
    parts = [
        "# What calls cost the host",
        "",
        f"Measured on {today()}: {machine}, one thread; {versions()}. Measured on a CPU with a pretended device "
        f"({TARGET}): host time only; no kernel has run. Ratios and differences of medians of processor time (of the "
        "UNet medians of ratios), sides interleaved in one process, the garbage collector off. Calls of functions, in "
        "Python and in C, are counted.",
        "",
        "The web UIs' way computes in earnest. With one token 320 wide that is most of its time, which flatters "
        "kernels that do nothing; 16 wide it is next to nothing, and dispatch is compared with dispatch. The UNet has "
        "the structure of Stable Diffusion 1.5's (16 transformer blocks) with 4 and 8 channels; everything is put on "
        "one and the same, by turns, and compared with its steps right before and after. What a network adds is "
        "compared with what hooks add that run the same network on the same layers.",
        "",
        *table(lines),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
