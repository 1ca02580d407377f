"""Which of the networks are shown, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hnkernels.errors import InputError
from hnkernels.home.library.entry import Entry

COLUMNS: dict[str, Callable[[Entry], Any]] = {
    "name": lambda entry: entry.name.casefold(),
    "kind": lambda entry: entry.facts.kind,
    "run": lambda entry: entry.run.casefold(),
    "base": lambda entry: entry.facts.base.casefold(),
    "widths": lambda entry: entry.facts.widths,
    "structure": lambda entry: entry.facts.structure,
    "activation": lambda entry: entry.facts.activation,
    "step": lambda entry: entry.facts.step,
    "size": lambda entry: entry.size,
    "hash": lambda entry: entry.facts.hash,
    "a1111": lambda entry: bool(entry.facts.a1111),
    "modified": lambda entry: entry.modified,
}
"""What networks can be sorted by."""


def matching(entries: Iterable[Entry], text: str) -> list[Entry]:
    """The entries in which every word of a text occurs: in name, run, kind, base model, activation, hash or notes."""
    words = text.casefold().split()
    found = []
    for entry in entries:
        facts = entry.facts
        fields = (entry.name, facts.title, entry.run, facts.kind, facts.base, facts.activation, facts.hash, entry.notes)
        said = "\n".join([*fields, *facts.styles]).casefold()
        if all(word in said for word in words):
            found.append(entry)
    return found


def ordered(entries: Iterable[Entry], column: str, descending: bool = False) -> list[Entry]:
    """The entries sorted by a column; equal ones by name, those that cannot be read last.

    Raises:
        ValueError: there is no such column.
    """
    if column not in COLUMNS:
        raise InputError(f"networks are not sorted by {column!r}; accepted are {', '.join(COLUMNS)}")
    by_name = sorted(entries, key=lambda entry: (entry.name.casefold(), entry.key))
    in_order = sorted(by_name, key=COLUMNS[column], reverse=descending)
    return sorted(in_order, key=lambda entry: bool(entry.facts.problem))
