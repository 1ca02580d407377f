"""One training run: the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from hnkernels.checkpoint.optim import restore_optimizer_state
from hnkernels.errors import HNKernelsError
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training import checks
from hnkernels.training.average import Average
from hnkernels.training.data.cache import Cache
from hnkernels.training.data.content import hash_of
from hnkernels.training.data.example import Example
from hnkernels.training.data.pipeline_data import PipelineData
from hnkernels.training.data.tensor_data import TensorData
from hnkernels.training.losses import draw
from hnkernels.training.optimizers import make_optimizer
from hnkernels.training.persistence.description import Description
from hnkernels.training.persistence.interrupt import deferred_interrupt
from hnkernels.training.persistence.run_files import RunFiles
from hnkernels.training.persistence.run_record import check_resumable, run_record
from hnkernels.training.persistence.run_state import RunState
from hnkernels.training.persistence.state import Checkpoint
from hnkernels.training.plan import Plan
from hnkernels.training.progress.health import Health
from hnkernels.training.progress.memory import memory_gb
from hnkernels.training.progress.preview import write_preview
from hnkernels.training.progress.reporter import Reporter, RunReporter
from hnkernels.training.sampler import generator_of
from hnkernels.training.step import Taken, adapter_of, take_step
from hnkernels.training.validation import Validation, split

if TYPE_CHECKING:
    from hnkernels.training.trainer import HypernetworkTrainer

_MEAN_OVER = 50  # steps


class DivergenceError(HNKernelsError, RuntimeError):
    """The loss or the gradient stopped being a number; the weights from before that step are kept."""


@dataclass
class TrainingResult:
    """How a run ended.

    Attributes:
        step: optimiser steps done in the run, those before a resume included.
        loss: mean loss of the last steps (50 at most).
        losses: loss of every step since the start or the resume.
        iterations_per_second: median over the steps.
        stopped: ``"finished"``, or ``"schedule"`` where the learning-rate schedule ended first.
        files: the finished network, ``.safetensors`` and, for a ``Hypernetwork``, ``.pt``.
    """

    step: int
    loss: float
    losses: list[float]
    iterations_per_second: float
    stopped: str
    files: tuple[Path, ...]


class Run:
    """One call of ``train``: the loop and its state.

    Args:
        trainer: whose settings, network and model they are; its folder is locked.
        data: encoded here, unless it is already.
        prior: examples for prior preservation.
        cache: for what is encoded; ``None`` for one in memory.
        checkpoint: where the run continues; ``None`` for a new one.
        allow_changes, optimizer_from: see ``HypernetworkTrainer.train``.

    Raises:
        ValueError: the checkpoint is of another run, or the disk is too small. Nothing has been encoded.
    """

    def __init__(
        self,
        trainer: HypernetworkTrainer,
        data: TensorData | list[Example],
        prior: Sequence[Example],
        cache: Cache | None,
        checkpoint: Checkpoint | None,
        allow_changes: bool,
        optimizer_from: str | Path | None = None,
    ):
        self.trainer, self.config, self.processes = trainer, trainer.config, trainer.processes
        self.net, self.unet, self.folder = trainer.net, trainer.unet, trainer.folder
        config, rows = self.config, data.rows if isinstance(data, TensorData) else [*data, *prior]
        self.prior = list(range(len(rows) - len(prior), len(rows)))
        if isinstance(data, TensorData):
            self.data: TensorData | PipelineData = data
        else:
            assert trainer.family is not None
            name = (self.net if checkpoint is None else checkpoint.net).provenance.name  # captions may have it in them
            self.data = PipelineData(trainer.family, [*data, *prior], config, name, self.processes, len(prior), cache)
        self.own, held = split(len(rows) - len(prior), config.validation_split)
        self.plan = self._planned()
        content = self.data.content_hash if isinstance(self.data, PipelineData) else hash_of
        record = run_record(config, rows, trainer.loss, self.unet, content, self.processes.count)
        if config.lr_scheduler is not None:
            record["steps of the lr_scheduler"] = str(self.plan.end)
        done = 0
        if checkpoint is not None:
            check_resumable(checkpoint, record, self.plan.end, allow_changes)
            done = checkpoint.state["step"]
            self.net.provenance = checkpoint.net.provenance
        self.first_step = self.net.provenance.step - done
        every = config.checkpoint_every
        if self.processes.main:
            checks.check_space(self.folder.path, self.net, 1 + ((self.plan.end - done) // every if every else 0))
        self.net.to(self.unet.device, torch.float32)
        half = config.mixed_precision == "fp16" or self.unet.dtype == torch.float16
        self.state = RunState(
            self.net,
            make_optimizer(self.net, config, self.unet),
            torch.amp.GradScaler(self.unet.device.type) if half else None,
            Average(self.net, config.ema_decay) if config.ema_decay is not None else None,
        )
        if checkpoint is not None:
            self.state.restore(checkpoint, checkpoint.state["run"].get("optimizer") == record["optimizer"])
        elif optimizer_from is not None:
            assert isinstance(self.net, Hypernetwork)
            restore_optimizer_state(optimizer_from, self.net, self.state.optimizer)
        if isinstance(self.data, PipelineData) and (broken := set(self.data.encode())):
            sound = [i for i in range(len(data)) if i not in broken]
            self.own, held = ([sound[i] for i in part] for part in split(len(sound), config.validation_split))
            self.prior = [i for i in self.prior if i not in broken]
            self.plan = self._planned()
        examples = [self.data.examples[i] for i in self.own] if isinstance(self.data, PipelineData) else []
        description = Description(trainer.family, trainer.model, config, examples, self.plan.end)
        self.files = RunFiles(self.folder, self.state, record, description, self.processes.main)
        self.processes.wait()  # until all have looked at the folder, before the main one writes into it
        self.start = self.files.start()
        self.validation: Validation | None = None
        if held:
            assert trainer.process is not None
            self.validation = Validation(
                trainer.process, self.net, self.unet, self.data, held, self.own, config.batch_size,
                config.mixed_precision, self.processes,
            )  # fmt: skip
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.alive = torch.ones((), device=self.unet.device)
        self._settled, self.stop_at = 0.0, math.inf

    def _planned(self) -> Plan:
        return Plan(self.config, self.data, self.own, self.prior, self.processes.count)

    def to_the_end(self) -> TrainingResult:
        stopped = "finished"
        waiting: _Waiting | None = None

        def alone(interrupted: Event) -> bool:
            return self.processes.count == 1 and interrupted.is_set()

        # Who sees the reporter's log takes the run for one that training has begun in: Ctrl-C leaves a checkpoint then.
        with deferred_interrupt() as interrupted, self._reporter() as reporter:
            if self.state.step == 0:
                self._begin(reporter)
            while self.state.step < self.plan.end:
                rate = self.plan.learning_rate(self.state.step)
                if rate is None:
                    stopped = "schedule"
                    break
                # The numbers of a step are read when the next one is on its way: nothing waits for the device.
                before, waiting = waiting, self._one_step(rate, interrupted.is_set())
                if before is not None:
                    self._settle(before, reporter)
                if (
                    self.trainer.callback is not None
                    or self._keeps()
                    or self.stop_at <= self.state.step
                    or alone(interrupted)
                ):
                    self._settle(waiting, reporter)
                    waiting = None
                if self.stop_at <= self.state.step or alone(interrupted):
                    self.files.save_checkpoint()
                    raise KeyboardInterrupt
                self._keep(reporter)
            if waiting is not None:
                self._settle(waiting, reporter)
            if self.state.step and not self._is_due(self.config.validate_every):
                self._measure(reporter)
            self.files.save_checkpoint()
            self.files.save_finished()
            reporter.stopped(stopped)
        self.processes.wait()
        return TrainingResult(
            self.state.step, self.state.mean_loss, self.losses, _median(self.rates), stopped, self.files.finished
        )

    def _reporter(self) -> Reporter:
        if not self.processes.main:
            return Reporter()
        name = self.net.provenance.name
        return RunReporter(self.folder.path, self.config, name, self.state.step, self.plan.end)

    def _one_step(self, rate: float, interrupted: bool) -> _Waiting:
        started = time.perf_counter()
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        batches = self.plan.sampler.step(self.state.step)
        generator = generator_of(self.config.seed, "step", self.state.step, self.processes.rank)
        with _seeded(generator.initial_seed(), self.alive.device):  # dropout draws from the global generators
            taken = take_step(
                self.net,
                self.unet,
                [batch for batch in map(self._batch, _numbered(batches)) if batch is not None],
                self.state.optimizer,
                process=self.trainer.process,
                loss=self.trainer.loss,
                mixed_precision=self.config.mixed_precision,
                scaler=self.state.scaler,
                gradient_clip=None if self.plan.clip is None else self.plan.clip.held_at(self.state.step),
                gradient_clip_mode=self.config.gradient_clip_mode,
                generator=generator,
                alive=self.alive,
                processes=self.processes,
                examples=sum(map(len, batches)),
                asked=interrupted,
            )
        # Overflow is what a scaler is there for; without one nothing that is not finite may ever be stepped over.
        fine = taken.finite if self.state.scaler is None else taken.loss.isfinite()
        self.alive = torch.where(fine, self.alive, math.nan)
        if self.state.average is not None:
            self.state.average.update(self.net)
        epoch = self.state.step // self.plan.sampler.steps_per_epoch
        self.state.step += 1
        return _Waiting(self.state.step, epoch, rate, started, time.perf_counter(), taken)

    def _batch(self, numbered: tuple[int, list[int]]) -> dict[str, Any] | None:
        """This process's part of a batch of the step, with its noise and timesteps; ``None`` if it has none.

        What is drawn for an example depends on its place in the step alone, not on how many processes there are.
        """
        first, indices = numbered
        start, end = self.processes.bounds(len(indices))
        if start == end:
            return None
        generators = [
            generator_of(self.config.seed, "example", self.state.step, first + place) for place in range(start, end)
        ]
        batch = self.data.batch(indices[start:end], generators)
        return batch if self.trainer.process is None else draw(self.trainer.process, batch, generators)

    def _settle(self, waiting: _Waiting, reporter: Reporter) -> None:
        """Reads a step's numbers and reports them.

        Raises:
            DivergenceError: the step was not finite. No later one has changed anything.
        """
        metrics = waiting.taken.metrics()
        if not metrics["updated"] and (self.state.scaler is None or not math.isfinite(metrics["loss"])):
            self._diverged(waiting.step, metrics)
        self.net.provenance.step = self.first_step + waiting.step
        # A device that computes by itself is done when its numbers can be read, another one when the step returns.
        now = time.perf_counter()
        took = max(waiting.returned - waiting.started, now - max(waiting.returned, self._settled), 1e-9)
        self.rates.append(1 / took)
        self._settled = now
        self.losses.append(metrics["loss"])
        self.state.recent_losses = [*self.state.recent_losses, metrics["loss"]][-_MEAN_OVER:]
        metrics |= {
            "step": waiting.step,
            "epoch": waiting.epoch,
            "mean_loss": self.state.mean_loss,
            "learning_rate": waiting.learning_rate,
            "iterations_per_second": self.rates[-1],
            "memory_gb": memory_gb(self.unet.device),
        }
        reporter.step({key: value for key, value in metrics.items() if key != "asked"})
        if self.trainer.callback is not None:
            self.trainer.callback(waiting.step, metrics)
        if metrics["asked"]:
            # All stop after the same step, which those that read one step late have taken by now.
            self.stop_at = min(self.stop_at, waiting.step + 1)

    def _keeps(self) -> bool:
        """Whether something is kept or shown after this step."""
        every = (self.config.checkpoint_every, self.config.preview_every, self.config.validate_every)
        return any(map(self._is_due, every))

    def _is_due(self, every: int) -> bool:
        return bool(every) and self.state.step % every == 0

    def _begin(self, reporter: Reporter) -> None:
        """Keeps and measures what the run begins with."""
        self.files.save_start()
        self._measure(reporter)

    def _measure(self, reporter: Reporter) -> None:
        """Validates, keeps the best network so far, and looks at how the network is."""
        with self.state.averaged():
            if self.validation is not None:
                measured, training_loss = self.validation.measure()
                reporter.validation(measured, self.state.step, training_loss)
                if measured.loss < self.state.best:
                    self.state.best = measured.loss
                    if self.state.step:
                        self.files.save_best()
            if self.processes.main and self.start is not None:
                reporter.health(Health.of(self.net, self.start, self._contexts()), self.state.step)

    def _contexts(self) -> dict[int, torch.Tensor]:
        """Some of the text that the network is trained on, by its width."""
        if self.trainer.process is None:
            return {}
        text = self.data.plain_batch(self.own[:1])["encoder_hidden_states"]
        return {text.shape[-1]: text.flatten(0, -2).to(self.unet.device, torch.float32)}

    def _keep(self, reporter: Reporter) -> None:
        if self._is_due(self.config.validate_every):
            self._measure(reporter)
        if self._is_due(self.config.checkpoint_every) and self.state.step < self.plan.end:
            self.files.save_checkpoint()
        if self._is_due(self.config.preview_every) and self.processes.main:
            with self.state.averaged(), _evaluating(self.net):
                file = self.folder.path / "previews" / f"step-{self.state.step:06d}.png"
                write_preview(self.trainer.model, self.config, file, adapter_of(self.unet, self.net))
                reporter.preview(file, self.state.step)

    def _diverged(self, step: int, metrics: dict[str, float]) -> None:
        self.state.step = step - 1  # later ones have changed nothing
        kept = self.files.save_checkpoint()
        raise DivergenceError(
            f"step {step}: the loss is {metrics['loss']} and the gradient norm {metrics['grad_norm']}; "
            f"the weights from before that step are in {kept}. Try a lower learning_rate, or init='identity'"
        )


class _Waiting(NamedTuple):
    """A step that has been taken, whose numbers are still with the device."""

    step: int
    epoch: int
    learning_rate: float
    started: float
    returned: float
    taken: Taken


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators of the CPU and of this device begin at a seed inside, and go on afterwards as before."""
    others = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(others, device_type=device.type if others else "cuda"):
        torch.default_generator.manual_seed(seed)
        if others:
            torch.get_device_module(device).manual_seed(seed)
        yield


@contextmanager
def _evaluating(net: torch.nn.Module) -> Iterator[None]:
    """The network in eval mode inside."""
    net.eval()
    try:
        yield
    finally:
        net.train()


def _numbered(batches: Iterable[list[int]]) -> Iterator[tuple[int, list[int]]]:
    """Every batch with the place of its first example in the step."""
    first = 0
    for batch in batches:
        yield first, batch
        first += len(batch)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0
