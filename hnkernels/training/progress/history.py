"""The numbers of a run so far, column by column, as its folder holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from hnkernels.checkpoint.atomic import replacing
from hnkernels.checkpoint.errors import naming
from hnkernels.training.progress.log import COLUMNS, VALIDATION_COLUMNS, table_of

LOG, VALIDATION, HEALTH, RUN = "log.csv", "validation.csv", "health.csv", "run.json"
"""Names of the files."""

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
        stopped: how it ended: ``"finished"``, ``"schedule"``, ``"interrupted"`` by Ctrl-C, or anything else a trainer
            says; ``None`` if it has not.
        name: the network's; ``None`` if that is not known.
        settings: of the run, by name.
    """

    log: Table = field(default_factory=dict)
    validation: Table = field(default_factory=dict)
    health: Table = field(default_factory=dict)
    end: int | None = None
    stopped: str | None = None
    name: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> History:
        """What the folder of a run holds; what is missing, damaged or of another kind counts as not measured."""
        run = read_run(folder)
        end, settings = run.get("end"), run.get("settings")
        return cls(
            table_of(folder / LOG, COLUMNS),
            table_of(folder / VALIDATION, VALIDATION_COLUMNS),
            table_of(folder / HEALTH),
            end if type(end) is int else None,
            _text(run.get("stopped")),
            _text(run.get("name")),
            settings if isinstance(settings, dict) else {},
        )


def write_run(
    folder: Path, name: str, settings: Mapping[str, Any], end: int | None = None, stopped: str | None = None
) -> None:
    """Writes ``run.json``, whole or not at all: what ``History`` knows beside the numbers.

    Args:
        folder: of the run; it exists.
        name, settings, end, stopped: see ``History``; a setting that JSON does not know becomes a text.

    Raises:
        CheckpointError: it cannot be written.
    """
    content = {"name": name, "end": end, "stopped": stopped, "settings": dict(settings)}
    data = json.dumps(content, indent=1, default=str).encode()
    path = folder / RUN
    with naming(path), replacing(path) as file:
        file.write(data)


def read_run(folder: Path) -> dict[str, Any]:
    """What ``write_run`` wrote, by name; empty if it is missing or damaged."""
    try:
        content = json.loads((folder / RUN).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
