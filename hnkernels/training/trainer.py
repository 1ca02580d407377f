"""The whole job: data in, a trained hypernetwork out."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator
from tqdm.auto import tqdm

from hnkernels.adapter import attach
from hnkernels.adapter.layers import denoiser
from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data import as_examples
from hnkernels.training.encoding import PipelineData, TensorData
from hnkernels.training.interrupt import deferred_interrupt
from hnkernels.training.log import CsvLog
from hnkernels.training.losses import Loss, denoises, denoising
from hnkernels.training.preview import write_preview
from hnkernels.training.schedule import Schedule
from hnkernels.training.state import latest_state, load_state, save_network, save_state
from hnkernels.training.step import adapter_of, frozen, is_attached, make_noise_scheduler, train_hypernetwork

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


class HypernetworkTrainer:
    """Trains a hypernetwork of either kind on a frozen Stable Diffusion model.

    Args:
        net: the hypernetwork, new or loaded; trained in place. It is moved to the model's device, in fp32.
        model: a diffusers Stable Diffusion pipeline, or a UNet if the data is encoded already.
        config: a ``TrainingConfig`` or a dict of its fields.
        data: a folder of images with captions (see ``read_image_folder``), or a sequence of (image or path, caption)
            pairs, or of mappings with ``latents`` and ``encoder_hidden_states`` per example. A ``WeightHypernetwork``
            is conditioned on each example's ``condition`` (see ``Example``), or without on its caption.
        callback: called as ``callback(step, metrics)`` after every step.
        loss: what is brought down; see ``training.losses``.

    Raises:
        ValueError: config or data cannot be used; the message says why.
        AdapterError: the network does not fit the model.
    """

    def __init__(
        self,
        net: Hypernetwork | WeightHypernetwork,
        model: Any,
        config: TrainingConfig | Mapping[str, Any] | None = None,
        data: Any = None,
        callback: Any = None,
        loss: Loss = denoising,
    ):
        self.net, self.model, self.callback, self.loss = net, model, callback, loss
        self.config = TrainingConfig.of(config)
        self._data = data
        if self.config.preview_every and not hasattr(model, "vae"):
            raise ValueError("previews need a pipeline; set preview_every=0 to train a UNet alone")
        self.unet: Any = denoiser(model)
        if not is_attached(self.unet, net):
            self._attach().detach()  # refuses a net for another model
        if getattr(self.unet.config, "addition_embed_type", None) is not None:
            raise ValueError("training is for Stable Diffusion 1.x and 2.x; this UNet wants added conditions (SDXL)")

    def train(self, data: Any = None, resume: bool | str | Path = False) -> TrainingResult:
        """Runs to the end, or until it is interrupted: Ctrl-C saves a checkpoint and raises ``KeyboardInterrupt``.

        Afterwards the network is in eval mode.

        Args:
            data: in the place of the constructor's.
            resume: ``True`` continues from the newest checkpoint in ``output_dir``, a path from that checkpoint. The
                run then is, bit for bit, the one that was not interrupted, given the same config and data.

        Raises:
            DivergenceError: loss or gradient became NaN or infinite; the last good state is saved.
            ValueError: there is nothing to resume, or (without ``resume``) ``output_dir`` holds another run.
        """
        data = self._encoded(data if data is not None else self._data)
        run = _Run(self, data, resume)
        with ExitStack() as stack:
            stack.enter_context(frozen(self.model))
            if not is_attached(self.unet, self.net):
                stack.enter_context(self._attach())
            if self.config.gradient_checkpointing and not self.unet.is_gradient_checkpointing:
                self.unet.enable_gradient_checkpointing()
                stack.callback(self.unet.disable_gradient_checkpointing)
            stack.callback(self.net.eval)
            return run.to_the_end()

    def _attach(self) -> Any:
        if not isinstance(self.net, WeightHypernetwork):
            return attach(self.unet, self.net, targets=self.config.target_layers)
        if outside := {layer.kind for layer in self.net.layers} - set(self.config.target_layers):
            raise ValueError(
                f"the network generates weights for {', '.join(sorted(outside))} too, and target_layers is "
                f"{', '.join(self.config.target_layers)}; build it for those"
            )
        return attach(self.unet, self.net)

    def _encoded(self, data: Any) -> TensorData | PipelineData:
        if data is None:
            raise ValueError("no data to train on: give a folder of images, or (image, caption) pairs")
        if isinstance(data, Sequence) and not isinstance(data, str) and data and isinstance(data[0], Mapping):
            return TensorData(data, denoises(self.loss))
        if not hasattr(self.model, "vae"):
            raise ValueError("images need a pipeline with its VAE and text encoder; for a UNet give encoded data")
        return PipelineData(self.model, as_examples(data, self.config.progress), self.config, self.net.provenance.name)


class _Run:
    """One call of ``train``: the loop and its state."""

    def __init__(self, trainer: HypernetworkTrainer, data: TensorData | PipelineData, resume: bool | str | Path):
        self.trainer, self.data, self.config = trainer, data, trainer.config
        self.net, self.unet = trainer.net, trainer.unet
        self.net.to(self.unet.device, torch.float32)
        self.out = Path(self.config.output_dir)
        self.checkpoints = self.out / "checkpoints"
        self.scheduler = make_noise_scheduler(trainer.model)
        per_step = self.config.batch_size * self.config.gradient_accumulation_steps
        self.steps_per_epoch = math.ceil(len(data) / per_step)
        self.end = self.config.max_epochs * self.steps_per_epoch
        if self.config.max_steps is not None:
            self.end = min(self.end, self.config.max_steps)
        self.learning_rate = Schedule(self.config.learning_rate, self.end)
        clip = self.config.gradient_clip
        self.clip = None if clip is None else Schedule(clip, self.end)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1.0, weight_decay=self.config.weight_decay)
        half = self.config.mixed_precision == "fp16" or self.unet.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.unet.device.type) if half else None
        self.step = 0
        self.losses: list[float] = []
        self.recent: list[float] = []
        self.rates: list[float] = []
        if resume:
            self._resume(latest_state(self.checkpoints) if resume is True else Path(resume))
        elif latest_state(self.checkpoints) is not None:
            raise ValueError(
                f"{self.out} holds a run already; continue it with resume=True, or name another output_dir"
            )
        self.first_step = self.net.provenance.step - self.step

    def to_the_end(self) -> TrainingResult:
        stopped = "finished"
        log = CsvLog(self.out / "log.csv", keep_until=self.step)
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
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in self.net.provenance.name)
        suffixes = (".safetensors",) if isinstance(self.net, WeightHypernetwork) else (".safetensors", ".pt")
        files = tuple(self.out / f"{name}{suffix}" for suffix in suffixes)
        for file in files:
            save_network(self.net, file)
        return TrainingResult(self.step, self._mean_loss(), self.losses, _median(self.rates), stopped, files)

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
            file = self.out / "previews" / f"step-{self.step:06d}.png"
            write_preview(self.trainer.model, config, file, adapter_of(self.unet, self.net))
            self.net.train()

    def _save(self) -> Path:
        state = {
            "step": self.step,
            "recent_losses": self.recent,
            "config": dataclasses.asdict(self.config),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }
        return save_state(self.checkpoints, self.step, self.net, state)

    def _resume(self, checkpoint: Path | None) -> None:
        if checkpoint is None or not checkpoint.is_dir():
            raise ValueError(f"there is no checkpoint to resume in {checkpoint or self.checkpoints}")
        state = load_state(checkpoint, self.net)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.recent = state["step"], state["recent_losses"]

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
