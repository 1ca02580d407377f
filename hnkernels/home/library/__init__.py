"""The networks of a home: what each is, and what can be done with it."""

from hnkernels.home.library.entry import Entry
from hnkernels.home.library.facts import CONTEXT, GENERATED, WEIGHTS
from hnkernels.home.library.library import Library
from hnkernels.home.library.searching import COLUMNS, matching, ordered

__all__ = ["COLUMNS", "CONTEXT", "GENERATED", "WEIGHTS", "Entry", "Library", "matching", "ordered"]
