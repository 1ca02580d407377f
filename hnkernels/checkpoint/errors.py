"""The one error of this folder, and how a fault found deep inside a file gets the file's name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hnkernels.errors import HNKernelsError


class CheckpointError(HNKernelsError):
    """A file that cannot be read or written as a hypernetwork; the message names file, fault and remedy."""


class Fault(Exception):
    """What is wrong with a file, raised by code that does not know which file it is.

    Args:
        what: the fault, as a sentence about the file without its subject: "is empty".
        remedy: what the reader of the message can do.
    """

    def __init__(self, what: str, remedy: str):
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns a ``Fault`` or ``OSError`` of its body into a ``CheckpointError`` about ``path``."""
    try:
        yield
    except Fault as fault:
        raise CheckpointError(f"{os.fspath(path)}: {fault.what}; {fault.remedy}") from fault.__cause__
    except FileNotFoundError as error:
        raise CheckpointError(f"{os.fspath(path)}: does not exist; check the path") from error
    except PermissionError as error:
        raise CheckpointError(f"{os.fspath(path)}: access is denied; check the permissions") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{os.fspath(path)}: the system reports {reason!r}; check disk and path") from error


def brief(value: object) -> str:
    """``value`` for an error message: short however large or deeply nested it is."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a huge int"
        return text if len(text) <= 60 else text[:57] + "..."
    return f"a {type(value).__name__}"
