"""The networks that a run has kept on its way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hnkernels.training.persistence.run_folder import RunFolder
from hnkernels.training.persistence.state import NETWORK, checkpoints_in


@dataclass(frozen=True)
class Stage:
    """A network of a run.

    Attributes:
        step: optimiser steps done.
        file: where it lies.
    """

    step: int
    file: Path


def stages_of(run: Path) -> list[Stage]:
    """The networks that a run has kept: its start, and one per checkpoint that is there still, by their steps."""
    folder = RunFolder(run)
    found = [Stage(int(path.name[5:]), path / NETWORK) for path in checkpoints_in(folder.checkpoints)]
    start = Stage(0, folder.start)
    return sorted((stage for stage in [start, *found] if stage.file.is_file()), key=lambda stage: stage.step)
