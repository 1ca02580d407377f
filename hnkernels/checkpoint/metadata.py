"""The named entries of a file beside the weights, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hnkernels.checkpoint.errors import Fault, brief
from hnkernels.network.hypernetwork import Provenance
from hnkernels.network.mlp import MLPConfig


class Metadata:
    """Typed access to a mapping that a stranger filled.

    Args:
        entries: the mapping; keys that nobody asks for are ignored.
    """

    def __init__(self, entries: Mapping[Any, Any]):
        self._entries = entries

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def boolean(self, key: str, default: bool) -> bool:
        """A bool; ``default`` if absent. Raises ``Fault`` for anything else, as the other methods do."""
        return self._typed(key, default, bool, "True or False")

    def integer(self, key: str, default: int) -> int:
        """An integer of at most 64 bits that is not a bool."""
        value = self._typed(key, default, int, "an integer")
        if abs(value) >= 2**63:
            raise self._fault(key, "an integer of at most 64 bits")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        return self._typed(key, default, str, "a string")

    def optional_text(self, key: str) -> str | None:
        """A string or ``None``; ``None`` if absent."""
        return None if self._entries.get(key) is None else self.text(key, "")

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """Whole or floating-point numbers in a list or tuple; ``None`` if absent or ``None``."""
        value = self._entries.get(key)
        if value is None:
            return None
        if type(value) not in (list, tuple) or not all(type(v) in (int, float) for v in value):
            raise self._fault(key, "a list of numbers")
        return tuple(value)

    def _typed(self, key: str, default: Any, kind: type, expected: str) -> Any:
        value = self._entries.get(key, default)
        # Exactly this type: True is an int to isinstance, and numpy's strings are strings.
        if type(value) is not kind:
            raise self._fault(key, expected)
        return value

    def _fault(self, key: str, expected: str) -> Fault:
        found = brief(self._entries[key])
        return Fault(f"has {key} = {found}, which must be {expected}", "correct it where the file was made")


def provenance(meta: Metadata, name: str, training: Mapping[str, str] | None = None) -> Provenance:
    """Step and base model beside a name, and what the file's header says of training."""
    return Provenance(
        name=name,
        step=meta.integer("step", 0),
        sd_checkpoint=meta.optional_text("sd_checkpoint"),
        sd_checkpoint_name=meta.optional_text("sd_checkpoint_name"),
        optional_info=meta.optional_text("optional_info"),
        training=dict(training or {}),
    )


def provenance_to_json(origin: Provenance) -> dict[str, Any]:
    """The inverse of ``provenance`` but for the name; ``training`` stands in the header itself."""
    content = asdict(origin)
    del content["training"]
    return content


def config(**options: Any) -> MLPConfig:
    """``MLPConfig(**options)``, whose refusal is a ``Fault`` of the file."""
    try:
        return MLPConfig(**options)
    except (ValueError, OverflowError) as error:
        what, _, remedy = str(error).partition("; ")
        fault = f"describes an impossible network: {what[:300]}"
        raise Fault(fault, remedy or "correct it where the file was made") from error
