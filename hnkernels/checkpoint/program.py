"""What a pickle would have PyTorch do, read before it is run: its program is opcodes, and nothing here executes them.

``torch.load(weights_only=True)`` runs no code of a file, but a small file can keep it busy, or fill the memory, with
what it does allow: ``bytearray(10**10)``; codecs that take the square of a text's length; and tuples of tuples, each of
which holds the one before several times, as keys of a dict: for their hash all copies are visited.
"""

from __future__ import annotations

import pickletools
from typing import BinaryIO, cast

from hnkernels.checkpoint.errors import Fault

_COSTLY = ("builtins bytearray", "__builtin__ bytearray", "_codecs encode")
_MOST_VISITS = 10**6


def check_program(program: bytes | BinaryIO) -> None:
    """Refuses what would take time or memory out of all proportion. Of a file it reads one pickle.

    Raises:
        Fault: it would.
        Exception: it is not a pickle; of several types.
    """
    weights: dict[int, int] = {}  # of tuples by their place in the memo: how many values a hash may visit, at most
    visits, last, puts = 0, None, 0
    for opcode, argument, _ in pickletools.genops(program):
        name, place = opcode.name, cast("int", argument)
        if name == "GLOBAL" and argument in _COSTLY:
            raise Fault(
                f"holds more than tensors and plain values ({argument.replace(' ', '.')}); it was refused, and "
                "nothing of it was run",
                "do not load it by other means unless you trust its source",
            )
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            if last is not None:
                weights[puts if name == "MEMOIZE" else place] = last
            puts += 1
            continue  # a value may be put twice
        last = None
        if name.startswith("TUPLE"):
            last = 1 + visits
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            visits += weights.get(place, 0)
            last = weights.get(place)
        if visits > _MOST_VISITS:
            raise Fault("holds tuples within tuples, whose values nobody could visit", "fetch or save the file again")
