"""One training run: the loop, and what it keeps."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from hnkernels.checkpoint import CheckpointError
from hnkernels.checkpoint.optim import restore_optimizer_state, save_optimizer_state
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training import checks
from hnkernels.training.average import Average
from hnkernels.training.data.cache import Cache
from hnkernels.training.data.content import hash_of
from hnkernels.training.data.example import Example
from hnkernels.training.data.pipeline_data import PipelineData
from hnkernels.training.data.tensor_data import TensorData
from hnkernels.training.losses import draw
from hnkernels.training.optimizers import learning_rate_at, make_optimizer
from hnkernels.training.persistence.interrupt import deferred_interrupt
from hnkernels.training.persistence.origin import describe_training
from hnkernels.training.persistence.run_record import differences, run_record
from hnkernels.training.persistence.state import Checkpoint, read_network, save_network, save_state
from hnkernels.training.progress.health import Health
from hnkernels.training.progress.preview import write_preview
from hnkernels.training.progress.reporter import Reporter, RunReporter
from hnkernels.training.sampler import Sampler, generator_of
from hnkernels.training.schedule import Schedule
from hnkernels.training.step import Taken, adapter_of, take_step
from hnkernels.training.validation import Validation, split

if TYPE_CHECKING:
    from hnkernels.training.trainer import HypernetworkTrainer

_MEAN_OVER = 50  # steps


class DivergenceError(RuntimeError):
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
            self.data = PipelineData(
                trainer.family, [*data, *prior], config, self.net.provenance.name, self.processes, len(prior), cache
            )
        self.own, held = split(len(rows) - len(prior), config.validation_split)
        self._plan()
        content = self.data.content_hash if isinstance(self.data, PipelineData) else hash_of
        self.record = run_record(config, rows, trainer.loss, self.unet, content, self.processes.count)
        if config.lr_scheduler is not None:
            self.record["steps of the lr_scheduler"] = str(self.end)
        self.step = 0
        self.recent: list[float] = []
        self.losses: list[float] = []
        self.rates: list[float] = []
        self._settled, self.best, self.stop_at = 0.0, math.inf, math.inf
        if checkpoint is not None:
            self._check_resume(checkpoint, allow_changes)
            self.step, self.recent = checkpoint.state["step"], checkpoint.state["recent_losses"]
            self.net.provenance = checkpoint.net.provenance
        self.first_step = self.net.provenance.step - self.step
        self.files = self.folder.files_for(self.net)
        every = config.checkpoint_every
        if self.processes.main:
            checks.check_space(self.folder.path, self.net, 1 + ((self.end - self.step) // every if every else 0))
        self.net.to(self.unet.device, torch.float32)
        self.optimizer = make_optimizer(self.net, config, self.unet)
        half = config.mixed_precision == "fp16" or self.unet.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.unet.device.type) if half else None
        self.average = Average(self.net, config.ema_decay) if config.ema_decay is not None else None
        self.alive = torch.ones((), device=self.unet.device)
        if checkpoint is not None:
            self._restore(checkpoint)
        elif optimizer_from is not None:
            assert isinstance(self.net, Hypernetwork)
            restore_optimizer_state(optimizer_from, self.net, self.optimizer)
        if isinstance(self.data, PipelineData) and (broken := set(self.data.encode())):
            sound = [i for i in range(len(data)) if i not in broken]
            self.own, held = ([sound[i] for i in part] for part in split(len(sound), config.validation_split))
            self.prior = [i for i in self.prior if i not in broken]
            self._plan()
        self.processes.wait()  # until all have looked at the folder, before the main one writes into it
        self.start = self._start()
        self.validation: Validation | None = None
        if held:
            assert trainer.process is not None
            self.validation = Validation(
                trainer.process, self.net, self.unet, self.data, held, self.own, config.batch_size,
                config.mixed_precision, self.processes,
            )  # fmt: skip

    def _plan(self) -> None:
        """What follows from the examples: who comes when, the number of steps and their learning rates."""
        config = self.config
        self.sampler = self._sampler()
        self.end = config.max_epochs * self.sampler.steps_per_epoch
        if config.max_steps is not None:
            self.end = min(self.end, config.max_steps)
        self.learning_rate = learning_rate_at(config, self.end)
        self.clip = None if config.gradient_clip is None else Schedule(config.gradient_clip, self.end)

    def _sampler(self) -> Sampler:
        config = self.config
        if len(self.own) < self.processes.count:
            raise ValueError(
                f"{self.processes.count} processes cannot train on {len(self.own)} examples; start fewer, or give more "
                "pictures"
            )
        return Sampler(
            self.data.groups(),
            self.own,
            config.batch_size * self.processes.count,
            config.gradient_accumulation_steps,
            config.seed,
            self.data.repeats(),
            self.prior,
        )

    def to_the_end(self) -> TrainingResult:
        stopped = "finished"
        reporter = Reporter()
        if self.processes.main:
            name = self.net.provenance.name
            reporter = RunReporter(self.folder.path, self.config, name, self.step, self.end)
        waiting: _Waiting | None = None

        def alone(interrupted: Event) -> bool:
            return self.processes.count == 1 and interrupted.is_set()

        with reporter, deferred_interrupt() as interrupted:
            if self.step == 0:
                self._begin(reporter)
            while self.step < self.end:
                rate = self.learning_rate(self.step)
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
                    or self.stop_at <= self.step
                    or alone(interrupted)
                ):
                    self._settle(waiting, reporter)
                    waiting = None
                if self.stop_at <= self.step or alone(interrupted):
                    self._save()
                    raise KeyboardInterrupt
                self._keep(reporter)
            if waiting is not None:
                self._settle(waiting, reporter)
            if self.step and not self._is_due(self.config.validate_every):
                self._measure(reporter)
            self._save()
            if self.processes.main:
                self._save_finished()
            reporter.stopped(stopped)
        self.processes.wait()
        return TrainingResult(self.step, self._mean_loss(), self.losses, _median(self.rates), stopped, self.files)

    def _one_step(self, rate: float, interrupted: bool) -> _Waiting:
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        batches = self.sampler.step(self.step)
        generator = generator_of(self.config.seed, "step", self.step, self.processes.rank)
        with _seeded(generator.initial_seed(), self.alive.device):  # dropout draws from the global generators
            taken = take_step(
                self.net,
                self.unet,
                [batch for batch in map(self._batch, _numbered(batches)) if batch is not None],
                self.optimizer,
                process=self.trainer.process,
                loss=self.trainer.loss,
                mixed_precision=self.config.mixed_precision,
                scaler=self.scaler,
                gradient_clip=None if self.clip is None else self.clip.held_at(self.step),
                gradient_clip_mode=self.config.gradient_clip_mode,
                generator=generator,
                alive=self.alive,
                processes=self.processes,
                examples=sum(map(len, batches)),
                asked=interrupted,
            )
        # Overflow is what a scaler is there for; without one nothing that is not finite may ever be stepped over.
        fine = taken.finite if self.scaler is None else taken.loss.isfinite()
        self.alive = torch.where(fine, self.alive, math.nan)
        if self.average is not None:
            self.average.update(self.net)
        epoch = self.step // self.sampler.steps_per_epoch
        self.step += 1
        return _Waiting(self.step, epoch, rate, started, time.perf_counter(), taken)

    def _batch(self, numbered: tuple[int, list[int]]) -> dict[str, Any] | None:
        """This process's part of a batch of the step, with its noise and timesteps; ``None`` if it has none.

        What is drawn for an example depends on its place in the step alone, not on how many processes there are.
        """
        first, indices = numbered
        start, end = self.processes.bounds(len(indices))
        if start == end:
            return None
        generators = [
            generator_of(self.config.seed, "example", self.step, first + place) for place in range(start, end)
        ]
        batch = self.data.batch(indices[start:end], generators)
        return batch if self.trainer.process is None else draw(self.trainer.process, batch, generators)

    def _settle(self, waiting: _Waiting, reporter: Reporter) -> None:
        """Reads a step's numbers and reports them.

        Raises:
            DivergenceError: the step was not finite. No later one has changed anything.
        """
        metrics = waiting.taken.metrics()
        if not metrics["updated"] and (self.scaler is None or not math.isfinite(metrics["loss"])):
            self._diverged(waiting.step, metrics)
        self.net.provenance.step = self.first_step + waiting.step
        # A device that computes by itself is done when its numbers can be read, another one when the step returns.
        now = time.perf_counter()
        took = max(waiting.returned - waiting.started, now - max(waiting.returned, self._settled), 1e-9)
        self.rates.append(1 / took)
        self._settled = now
        self.losses.append(metrics["loss"])
        self.recent = [*self.recent, metrics["loss"]][-_MEAN_OVER:]
        metrics |= {
            "step": waiting.step,
            "epoch": waiting.epoch,
            "mean_loss": self._mean_loss(),
            "learning_rate": waiting.learning_rate,
            "iterations_per_second": self.rates[-1],
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
        return bool(every) and self.step % every == 0

    def _begin(self, reporter: Reporter) -> None:
        """Keeps and measures what the run begins with."""
        if self.processes.main:
            save_network(self.net, self.folder.start)
        self._measure(reporter)

    def _measure(self, reporter: Reporter) -> None:
        """Validates, keeps the best network so far, and looks at how the network is."""
        with self._averaged():
            if self.validation is not None:
                measured, training_loss = self.validation.measure()
                reporter.validation(measured, self.step, training_loss)
                if measured.loss < self.best:
                    self.best = measured.loss
                    if self.processes.main and self.step:
                        self._describe()
                        self.folder.path.mkdir(parents=True, exist_ok=True)  # whoever may have removed it
                        save_network(self.net, self.folder.best_of(self.net))
            if self.processes.main and self.start is not None:
                reporter.health(Health.of(self.net, self.start, self._contexts()), self.step)

    def _contexts(self) -> dict[int, torch.Tensor]:
        """Some of the text that the network is trained on, by its width."""
        if self.trainer.process is None:
            return {}
        text = self.data.plain_batch(self.own[:1])["encoder_hidden_states"]
        return {text.shape[-1]: text.flatten(0, -2).to(self.unet.device, torch.float32)}

    def _keep(self, reporter: Reporter) -> None:
        if self._is_due(self.config.validate_every):
            self._measure(reporter)
        if self._is_due(self.config.checkpoint_every) and self.step < self.end:
            self._save()
        if self._is_due(self.config.preview_every) and self.processes.main:
            with self._averaged(), _evaluating(self.net):
                file = self.folder.path / "previews" / f"step-{self.step:06d}.png"
                write_preview(self.trainer.model, self.config, file, adapter_of(self.unet, self.net))
                reporter.preview(file, self.step)

    def _save(self, step: int | None = None) -> Path:
        step = self.step if step is None else step
        self._describe()
        state = {
            "step": step,
            "recent_losses": self.recent,
            "run": self.record,
            "optimizer": self.optimizer.state_dict(),
            "parameters": self._names(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "average": self.average.state_dict() if self.average is not None else None,
            "best": self.best,
        }
        folder = self.folder.checkpoints / f"step-{step:06d}"
        return save_state(self.folder.checkpoints, step, self.net, state) if self.processes.main else folder

    def _save_finished(self) -> None:
        """Writes the finished network, and for A1111 the optimiser's state beside its file."""
        self._describe()
        with self._averaged():
            for file in self.files:
                save_network(self.net, file)
        if isinstance(self.net, Hypernetwork) and self.average is None:  # which the state would not belong to
            save_optimizer_state(self.files[-1], self.optimizer, self.net)

    def _describe(self) -> None:
        """Says in the network's provenance how it is trained, for all files that are written from now on."""
        family, model = self.trainer.family, self.trainer.model
        if family is None:
            return
        captions: dict[str, list[str]] = {}
        if isinstance(self.data, PipelineData):
            for i in self.own:
                example = self.data.examples[i]
                folder = example.image.parent.name if isinstance(example.image, Path) else "pictures"
                captions.setdefault(folder, []).append(example.caption)
        name = getattr(getattr(model, "config", None), "_name_or_path", None) or getattr(model, "name_or_path", None)
        describe_training(
            self.net,
            self.config,
            steps=self.step,
            end=self.end,
            base_version=family.version,
            model_name=Path(name).name if name else None,
            resolution=self.config.resolution or (family.side if family.pipeline is not None else 512),
            captions=captions,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.net.load_state_dict(checkpoint.net.state_dict())
        self._restore_optimizer(checkpoint)
        if self.scaler is not None and checkpoint.state["scaler"]:
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        if self.average is not None and checkpoint.state.get("average"):
            self.average.load_state_dict(checkpoint.state["average"])
        self.best = checkpoint.state.get("best", math.inf)

    def _restore_optimizer(self, checkpoint: Checkpoint) -> None:
        state, own = checkpoint.state["optimizer"], self.optimizer.state_dict()
        same = checkpoint.state["run"].get("optimizer") == self.record["optimizer"]
        groups, own_groups = ([len(g["params"]) for g in one["param_groups"]] for one in (state, own))
        if same and groups == own_groups and checkpoint.state["parameters"] == self._names():
            self.optimizer.load_state_dict(state)
        else:
            warnings.warn(f"{checkpoint.path} has another optimiser; this run begins with a fresh one", stacklevel=4)

    def _names(self) -> list[str]:
        """The names of the parameters as the optimiser numbers them."""
        names = {p: name for name, p in self.net.named_parameters()}
        return [names[p] for group in self.optimizer.param_groups for p in group["params"]]

    def _start(self) -> dict[str, torch.Tensor] | None:
        """What the network began with; ``None`` where that is not known any more."""
        if self.step == 0:
            return {key: value.cpu().clone() for key, value in self.net.state_dict().items()}
        try:
            return read_network(self.folder.start, self.net).state_dict()
        except (CheckpointError, ValueError):
            return None

    def _averaged(self) -> Any:
        """The network's average in its place, inside."""
        return nullcontext() if self.average is None else self.average.in_place_of(self.net)

    def _check_resume(self, checkpoint: Checkpoint, allow_changes: bool) -> None:
        if checkpoint.state["step"] > self.end:
            raise ValueError(
                f"{checkpoint.path} has {checkpoint.state['step']} steps behind it, and the settings end the run at "
                f"{self.end}; raise max_steps or max_epochs"
            )
        if changes := ", ".join(differences(checkpoint.state["run"], self.record)):
            if not allow_changes:
                raise ValueError(
                    f"{checkpoint.path} is of a run with other settings, data or versions: {changes}; go on with "
                    "allow_changes=True (--allow-changes), or begin again in another output_dir"
                )
            warnings.warn(f"the run continues from {checkpoint.path} with changes: {changes}", stacklevel=4)

    def _diverged(self, step: int, metrics: dict[str, float]) -> None:
        kept = self._save(step - 1)
        raise DivergenceError(
            f"step {step}: the loss is {metrics['loss']} and the gradient norm {metrics['grad_norm']}; "
            f"the weights from before that step are in {kept}. Try a lower learning_rate, or init='identity'"
        )

    def _mean_loss(self) -> float:
        return sum(self.recent) / len(self.recent) if self.recent else math.nan


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
