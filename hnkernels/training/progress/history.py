"""The numbers of a run so far, column by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Table: TypeAlias = Mapping[str, Sequence[float]]
"""Columns by name, all of one length; no column at all where nothing was measured."""


@dataclass(frozen=True)
class History:
    """What a run has measured.

    Attributes:
        log: ``progress.log.COLUMNS``, a row per step.
        validation: ``progress.log.VALIDATION_COLUMNS``, a row per validation.
        health: ``"step"`` and ``Health.columns()``, a row per measurement.
        end: the step at which the run is to end; ``None`` if that is not known.
        stopped: how it ended: ``"finished"``, ``"schedule"``, or anything else a trainer says; ``None`` if it has not.
    """

    log: Table = field(default_factory=dict)
    validation: Table = field(default_factory=dict)
    health: Table = field(default_factory=dict)
    end: int | None = None
    stopped: str | None = None
