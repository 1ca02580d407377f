"""Calls of functions, counted: the same on every machine, however busy it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def calls_of(function: Callable[[], Any], warm_up: int = 3) -> int:
    """How many functions, of Python and of C, one call of this one calls, after some to warm up."""
    for _ in range(warm_up):
        function()
    count = 0

    def see(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count - 2  # the function itself, and setprofile
