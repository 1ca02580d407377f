"""How error messages show a value that somebody gave."""

from __future__ import annotations

from typing import Any

_LONGEST = 200


def shown(value: Any) -> str:
    """``repr(value)``, cut where it is long; the type alone if there is none, as for an integer of 5000 digits."""
    try:
        text = repr(value)
    except Exception:  # whatever its class raises
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
