"""How long a step takes, measured: a few steps of the run itself, on a few of its pictures."""

from __future__ import annotations

import dataclasses
import subprocess
import tempfile
from pathlib import Path

from hnkernels.errors import InputError
from hnkernels.home.runs.request import RunRequest
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.folder import read_folder
from hnkernels.training.data.pictures import opened
from hnkernels.training.progress.log import last_rows

_STEPS = 5
_LONGEST = 1800.0  # seconds

_LEAVE_OUT = ("cache_dir", "regularization_data", "mask_data", "masked_loss", "trackers", "lr_scheduler_args")


def seconds_per_step(request: RunRequest, scratch: Path) -> float:
    """Trains a few steps in a process of its own and throws them away.

    Args:
        request: the run.
        scratch: a folder for what is thrown away.

    Raises:
        ValueError: the run fails; the message is the last thing it says.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        folder, data = Path(temporary) / "run", Path(temporary) / "data"
        folder.mkdir()
        data.mkdir()
        config = TrainingConfig.of(request.training)
        _write_some(Path(request.data), data, config.batch_size * config.gradient_accumulation_steps)
        training = {name: value for name, value in request.training.items() if name not in _LEAVE_OUT}
        training |= {"max_steps": _STEPS, "max_epochs": _STEPS, "checkpoint_every": 0, "preview_every": 0}
        training |= {"validation_split": 0, "lr_scheduler": None, "lr_warmup_steps": 0}
        short = dataclasses.replace(request, data=str(data), training=training, resume=False)
        short.write(folder)
        try:
            done = subprocess.run(
                short.command(folder), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LONGEST
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"{_STEPS} steps took longer than {_LONGEST:.0f} seconds") from None
        rows = last_rows(folder / "log.csv")
        if done.returncode or not rows:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise InputError(f"the trial failed: {lines[-1]}")
        return 1 / rows[-1]["iterations_per_second"]


def _write_some(source: Path, target: Path, count: int) -> None:
    """The first pictures of a data folder, again and again if it has fewer, with their captions."""
    rows = read_folder(source).rows
    for number in range(count):
        example = rows[number % len(rows)]
        with opened(example.image) as image:
            image.convert("RGB").save(target / f"{number}.png")
        (target / f"{number}.txt").write_text(example.caption, encoding="utf-8")
