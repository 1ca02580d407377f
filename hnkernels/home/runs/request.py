"""What a run is asked to do: the arguments of ``hnkernels train``, kept in the run's folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hnkernels.checkpoint.atomic import replacing
from hnkernels.errors import InputError
from hnkernels.wording import shown

_REQUEST, _CONFIG = "request.json", "config.json"


@dataclass(frozen=True)
class RunRequest:
    """The arguments of ``hnkernels train``.

    Args:
        model: folder of the pipeline.
        data: folder of the pictures.
        name: of the network.
        kind: ``"context"`` or ``"weights"``.
        training: settings of ``TrainingConfig`` but ``output_dir``, which is the run's folder.
        network: arguments of the network.
        model_dtype: of the base model.
        ticket: place in the queue: lower ones first.
        resume: continue from the newest checkpoint.
    """

    model: str
    data: str
    name: str
    kind: str = "context"
    training: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    model_dtype: str = "fp32"
    ticket: int = 0
    resume: bool = False

    def write(self, folder: Path) -> None:
        """Writes the request, and the config of the command, into the run's folder.

        Raises:
            OSError: they cannot be written.
        """
        config = {"training": dict(self.training), "network": dict(self.network)}
        for name, content in ((_CONFIG, config), (_REQUEST, dataclasses.asdict(self))):
            with replacing(folder / name) as file:
                file.write(json.dumps(content, indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> RunRequest | None:
        """The request in a folder; ``None`` if there is none, as in a folder of a run from the command line."""
        try:
            content = json.loads((folder / _REQUEST).read_bytes())
            return cls(**content) if isinstance(content, dict) else None
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def command(self, folder: Path) -> list[str]:
        """The command that does it, with the same Python.

        Args:
            folder: of the run.

        Raises:
            ValueError: a path or name cannot be an argument.
        """
        values = [self.model, self.data, self.name]
        if strange := [value for value in values if not isinstance(value, str) or "\0" in value or not value]:
            raise InputError(f"{shown(strange[0])} cannot be an argument of a command; give another name")
        return [
            *(sys.executable, "-m", "hnkernels", "train", f"--config={folder / _CONFIG}", f"--kind={self.kind}"),
            *(f"--name={self.name}", f"--output-dir={folder}", f"--model-dtype={self.model_dtype}"),
            "--recipe=none",  # the config says everything
            *(["--resume"] if self.resume else []),
            *("--", self.model, self.data),
        ]
