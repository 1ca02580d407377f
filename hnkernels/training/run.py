"""One training run: the loop, and what it keeps."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator
from tqdm.auto import tqdm

from hnkernels.training import checks
from hnkernels.training.data.encoding import PipelineData, TensorData
from hnkernels.training.data.examples import Example
from hnkernels.training.persistence.interrupt import deferred_interrupt
from hnkernels.training.persistence.run_record import differences, run_record
from hnkernels.training.persistence.state import Checkpoint, save_network, save_state
from hnkernels.training.progress.log import CsvLog
from hnkernels.training.progress.preview import write_preview
from hnkernels.training.schedule import Schedule
from hnkernels.training.step import adapter_of, make_noise_scheduler, train_hypernetwork

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
        checkpoint: where the run continues; ``None`` for a new one.
        allow_changes: see ``HypernetworkTrainer.train``.

    Raises:
        ValueError: the checkpoint is of another run, or the disk is too small. Nothing has been encoded.
    """

    def __init__(
        self,
        trainer: HypernetworkTrainer,
        data: TensorData | list[Example],
        checkpoint: Checkpoint | None,
        allow_changes: bool,
    ):
        self.trainer, self.config = trainer, trainer.config
        self.net, self.unet, self.folder = trainer.net, trainer.unet, trainer.folder
        self.scheduler = make_noise_scheduler(trainer.model)
        per_step = self.config.batch_size * self.config.gradient_accumulation_steps
        self.steps_per_epoch = math.ceil(len(data) / per_step)
        self.end = self.config.max_epochs * self.steps_per_epoch
        if self.config.max_steps is not None:
            self.end = min(self.end, self.config.max_steps)
        self.learning_rate = Schedule(self.config.learning_rate, self.end)
        clip = self.config.gradient_clip
        self.clip = None if clip is None else Schedule(clip, self.end)
        rows = data.rows if isinstance(data, TensorData) else data
        self.record = run_record(self.config, rows, trainer.loss, self.unet)
        self.step = 0
        self.losses: list[float] = []
        self.recent: list[float] = []
        self.rates: list[float] = []
        if checkpoint is not None:
            self._check_resume(checkpoint, allow_changes)
            self.step, self.recent = checkpoint.state["step"], checkpoint.state["recent_losses"]
            self.net.provenance = checkpoint.net.provenance
        self.first_step = self.net.provenance.step - self.step
        self.files = self.folder.files_for(self.net)
        every = self.config.checkpoint_every
        checks.check_space(self.folder.path, self.net, 1 + ((self.end - self.step) // every if every else 0))
        self.data = (
            data
            if isinstance(data, TensorData)
            else PipelineData(trainer.model, data, self.config, self.net.provenance.name)
        )
        self.net.to(self.unet.device, torch.float32)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1.0, weight_decay=float(self.config.weight_decay))
        half = self.config.mixed_precision == "fp16" or self.unet.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.unet.device.type) if half else None
        if checkpoint is not None:
            self.net.load_state_dict(checkpoint.net.state_dict())
            self.optimizer.load_state_dict(checkpoint.state["optimizer"])
            if self.scaler is not None and checkpoint.state["scaler"]:
                self.scaler.load_state_dict(checkpoint.state["scaler"])

    def to_the_end(self) -> TrainingResult:
        stopped = "finished"
        log = CsvLog(self.folder.log, keep_until=self.step)
        bar = tqdm(total=self.end, initial=self.step, unit="step", disable=not self.config.progress)
        with log, bar, deferred_interrupt() as interrupted:
            while self.step < self.end:
                rate = self.learning_rate.at(self.step)
                if rate is None:
                    stopped = "schedule"
                    break
                metrics = self._one_step(rate)
                if not metrics["updated"] and (self.scaler is None or not math.isfinite(metrics["loss"])):
                    self._diverged(metrics)
                self._report(metrics, log, bar)
                if interrupted.is_set():
                    self._save()
                    raise KeyboardInterrupt
                self._keep()
        self._save()
        for file in self.files:
            save_network(self.net, file)
        return TrainingResult(self.step, self._mean_loss(), self.losses, _median(self.rates), stopped, self.files)

    def _one_step(self, rate: float) -> dict[str, float]:
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        generator = _generator(self.config.seed, "step", self.step)
        batches = [self.data.batch(indices, generator) for indices in self._indices()]
        with torch.random.fork_rng():  # dropout draws from the global generator
            torch.manual_seed(generator.initial_seed())
            metrics = train_hypernetwork(
                self.net,
                self.trainer.model,
                batches,
                self.optimizer,
                noise_scheduler=self.scheduler,
                mixed_precision=self.config.mixed_precision,
                scaler=self.scaler,
                gradient_clip=None if self.clip is None else self.clip.held_at(self.step),
                gradient_clip_mode=self.config.gradient_clip_mode,
                generator=generator,
                loss=self.trainer.loss,
            )
        metrics["learning_rate"] = rate
        metrics["iterations_per_second"] = 1 / (time.perf_counter() - started)
        return metrics

    def _indices(self) -> list[list[int]]:
        """The examples of this step, per forward pass."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        order = torch.randperm(len(self.data), generator=_generator(self.config.seed, "epoch", epoch)).tolist()
        size = self.config.batch_size
        start = position * size * self.config.gradient_accumulation_steps
        chosen = order[start : start + size * self.config.gradient_accumulation_steps]
        return [chosen[i : i + size] for i in range(0, len(chosen), size)]

    def _report(self, metrics: dict[str, float], log: CsvLog, bar: tqdm) -> None:
        epoch = self.step // self.steps_per_epoch
        self.step += 1
        self.net.provenance.step = self.first_step + self.step
        self.losses.append(metrics["loss"])
        self.recent = [*self.recent, metrics["loss"]][-_MEAN_OVER:]
        self.rates.append(metrics["iterations_per_second"])
        metrics |= {"step": self.step, "epoch": epoch, "mean_loss": self._mean_loss()}
        log.write(metrics)
        bar.update()
        bar.set_postfix(loss=f"{metrics['mean_loss']:.4f}", lr=f"{metrics['learning_rate']:.1e}")
        if self.trainer.callback is not None:
            self.trainer.callback(self.step, metrics)

    def _keep(self) -> None:
        config = self.config
        if config.checkpoint_every and self.step % config.checkpoint_every == 0 and self.step < self.end:
            self._save()
        if config.preview_every and self.step % config.preview_every == 0:
            self.net.eval()
            file = self.folder.path / "previews" / f"step-{self.step:06d}.png"
            write_preview(self.trainer.model, config, file, adapter_of(self.unet, self.net))
            self.net.train()

    def _save(self) -> Path:
        state = {
            "step": self.step,
            "recent_losses": self.recent,
            "run": self.record,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }
        return save_state(self.folder.checkpoints, self.step, self.net, state)

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
                    "allow_changes=True (--allow-changes), or start anew in another output_dir"
                )
            warnings.warn(f"the run continues from {checkpoint.path} with changes: {changes}", stacklevel=4)

    def _diverged(self, metrics: dict[str, float]) -> None:
        kept = self._save()
        raise DivergenceError(
            f"step {self.step + 1}: the loss is {metrics['loss']} and the gradient norm {metrics['grad_norm']}; "
            f"the weights from before that step are in {kept}. Try a lower learning_rate, or init='identity'"
        )

    def _mean_loss(self) -> float:
        return sum(self.recent) / len(self.recent) if self.recent else math.nan


def _generator(seed: int, *purpose: str | int) -> Generator:
    """A generator for one purpose, independent of every other one's."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0
