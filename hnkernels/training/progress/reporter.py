"""Everything that a run tells of itself while it goes on: log, bar, trackers, and the report at its end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from hnkernels.checkpoint import CheckpointError
from hnkernels.training.config import TrainingConfig
from hnkernels.training.progress.bar import Progress
from hnkernels.training.progress.findings import findings
from hnkernels.training.progress.health import Health
from hnkernels.training.progress.history import HEALTH, LOG, VALIDATION, History, write_run
from hnkernels.training.progress.log import VALIDATION_COLUMNS, CsvLog
from hnkernels.training.progress.measured import Measured
from hnkernels.training.progress.report import write_report
from hnkernels.training.progress.trackers import Trackers


class Reporter:
    """Says nothing: of the processes that train together, all but the main one have this."""

    def step(self, metrics: Mapping[str, float]) -> None:
        """A step's numbers."""

    def validation(self, measured: Measured, step: int, training_loss: float) -> None:
        """What a validation has measured."""

    def health(self, health: Health, step: int) -> None:
        """How the network is."""

    def preview(self, path: Path, step: int) -> None:
        """A preview has been written."""

    def stopped(self, how: str) -> None:
        """The run has ended: how, see ``History``."""

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *error: object) -> None:
        """Closes what is open."""


class RunReporter(Reporter):
    """Writes into a run's folder, shows a bar, and tells the trackers.

    Args:
        folder: of the run.
        config: its settings.
        name: the network's.
        step: steps done before.
        end: the step at which the run ends.
    """

    def __init__(self, folder: Path, config: TrainingConfig, name: str, step: int, end: int):
        self._folder, self._name, self._end, self._step = folder, name, end, step
        self._settings: dict[str, Any] = vars(config)
        self._stack = ExitStack()
        with ExitStack() as stack:
            # First what may be refused: a run that cannot begin leaves no log.
            self._trackers = stack.enter_context(Trackers(config.trackers, folder, self._settings, step))
            self._log = stack.enter_context(CsvLog(folder / LOG, keep_until=step))
            self._bar = stack.enter_context(Progress(end, step, config.progress))
            write_run(folder, name, self._settings, end)
            self._stack = stack.pop_all()
        self._validations: CsvLog | None = None
        self._healths: CsvLog | None = None

    def step(self, metrics: Mapping[str, float]) -> None:
        self._log.write(metrics)
        self._bar.update(metrics)
        self._trackers.log(metrics, int(metrics["step"]))

    def validation(self, measured: Measured, step: int, training_loss: float) -> None:
        if self._validations is None:
            log = CsvLog(self._folder / VALIDATION, self._step, VALIDATION_COLUMNS, every_step=False)
            self._validations = self._stack.enter_context(log)
        row = measured.row(step, training_loss)
        self._validations.write(row)
        self._bar.update({"step": step, "validation_loss": measured.loss})
        self._trackers.log({f"validation/{key}": value for key, value in row.items() if key != "step"}, step)

    def health(self, health: Health, step: int) -> None:
        if self._healths is None:
            log = CsvLog(self._folder / HEALTH, self._step, ("step", *health.columns()), every_step=False)
            self._healths = self._stack.enter_context(log)
        row = health.row(step)
        self._healths.write(row)
        self._trackers.log({f"health/{key}": value for key, value in row.items() if key != "step"}, step)

    def preview(self, path: Path, step: int) -> None:
        if self._settings["trackers"]:
            from PIL import Image

            with Image.open(path) as image:
                self._trackers.log_image("preview", image, step)

    def stopped(self, how: str) -> None:
        write_run(self._folder, self._name, self._settings, self._end, how)

    def __exit__(self, *error: object) -> None:
        if error[0] is KeyboardInterrupt:
            with suppress(CheckpointError):
                self.stopped("interrupted")
        for finding in findings(History.read(self._folder)):
            self._bar.note(finding)
        self._stack.close()
        # The report alone needs matplotlib; and where something has failed already, that is what is to be told.
        with suppress(ImportError, *([CheckpointError] if error[0] is not None else [])):
            write_report(self._folder)
