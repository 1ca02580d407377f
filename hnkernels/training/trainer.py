"""The whole job: data in, a trained hypernetwork out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hnkernels.adapter import attach
from hnkernels.adapter.layers import denoiser
from hnkernels.errors import InputError
from hnkernels.generator import WeightHypernetwork
from hnkernels.network.hypernetwork import Hypernetwork
from hnkernels.training import checks
from hnkernels.training.config import TrainingConfig
from hnkernels.training.data.cache import Cache, DiskCache, MemoryCache
from hnkernels.training.data.example import Example
from hnkernels.training.data.examples import as_examples
from hnkernels.training.data.readable import readable
from hnkernels.training.data.tensor_data import TensorData
from hnkernels.training.families import family_of
from hnkernels.training.losses import Loss, Process, denoises, denoising
from hnkernels.training.objective import Objective
from hnkernels.training.optimizers import learning_rate_at, optimizer_class
from hnkernels.training.persistence.run_folder import RunFolder
from hnkernels.training.persistence.state import Checkpoint, latest_checkpoint, read_checkpoint
from hnkernels.training.processes import Processes
from hnkernels.training.progress.trackers import check_trackers
from hnkernels.training.run import Run, TrainingResult
from hnkernels.training.step import frozen, is_attached
from hnkernels.training.validation import split


class HypernetworkTrainer:
    """Trains a hypernetwork of either kind on a frozen Stable Diffusion model.

    Args:
        net: the hypernetwork, new or loaded; trained in place. It is moved to the model's device, in fp32.
        model: a diffusers pipeline of one of ``training.families``, or its UNet or transformer if the data is encoded
            already.
        config: a ``TrainingConfig`` or a dict of its fields.
        data: a folder of images with captions (see ``read_image_folder``), or a sequence of (image or path, caption)
            pairs, or of mappings with ``latents`` and ``encoder_hidden_states`` per example. A ``WeightHypernetwork``
            is conditioned on each example's ``condition`` (see ``Example``), or without on its caption.
        callback: called as ``callback(step, metrics)`` after every step.
        loss: what is brought down; see ``training.losses``.
        accelerator: accelerate's, for several processes; ``None`` for one, or for those that ``accelerate launch`` has
            started.

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
        accelerator: Any = None,
    ):
        if not isinstance(net, Hypernetwork | WeightHypernetwork):
            raise InputError(
                f"net must be a Hypernetwork or WeightHypernetwork, not {type(net).__name__}; load one with "
                "load_hypernetwork(path)"
            )
        self.net, self.model, self.callback, self.loss = net, model, callback, loss
        self.config = TrainingConfig.of(config)
        self._data = data
        self.unet: Any = denoiser(model)
        self.processes = Processes.of(accelerator)
        self.folder = RunFolder(self.config.output_dir)
        self.folder.files_for(net)  # refuses a name that makes no file name
        self.family = family_of(model) if denoises(loss) or hasattr(model, "vae") else None
        self.process: Process | None = None
        if self.family is not None and denoises(loss):
            noising = self.family.noising(zero_terminal_snr=self.config.zero_terminal_snr)
            self.process = Process(self.family, noising, Objective.of(self.config))
            checks.check_model(self.process, self.config)
        if self.process is None and self.config.validation_split:
            raise InputError("validation_split is for losses that denoise, and this one does not; leave it at 0")
        width = None if self.family is None else self.family.text_width
        checks.check_previews(self.config, model, width, net)
        check_trackers(self.config.trackers)
        optimizer_class(self.config.optimizer)
        learning_rate_at(self.config, 1)
        if not is_attached(self.unet, net):
            self._attach().detach()  # refuses a net for another model

    def train(
        self,
        data: Any = None,
        resume: bool | str | Path = False,
        allow_changes: bool = False,
        optimizer_from: str | Path | None = None,
    ) -> TrainingResult:
        """Runs to the end, or until it is interrupted: Ctrl-C saves a checkpoint and raises ``KeyboardInterrupt``.

        Afterwards the network is in eval mode. While the run lasts, no other one can write to ``output_dir``.

        Args:
            data: in the place of the constructor's.
            resume: ``True`` continues from the newest checkpoint in ``output_dir`` that is not damaged, a path from
                that checkpoint. The run then is, bit for bit, the one that was not interrupted; the network has the
                name and origin of that one.
            allow_changes: resume with other settings, data or versions too, under a warning that names them. How long
                the run is and what it shows and keeps (``max_steps``, previews, ``checkpoint_every`` …) may always
                differ.
            optimizer_from: an A1111 ``.pt`` file, which the network was loaded from: the optimiser goes on from the
                ``.optim`` beside it, if there is one that belongs to it. Without effect on a resumed run.

        Raises:
            DivergenceError: loss or gradient became NaN or infinite; the last good state is saved.
            ValueError: there is nothing to resume, or the run there is another one; or (without ``resume``)
                ``output_dir`` holds another run; or one is writing to it; or the disk is too small.
            CheckpointError: the checkpoint to resume is damaged (with ``True``: all are), or one cannot be written.
        """
        if optimizer_from is not None and not isinstance(self.net, Hypernetwork):
            raise InputError("optimizer_from is for a Hypernetwork; A1111 has no other networks")
        if self.family is not None:
            self.family.place(again=True)
        with ExitStack() as stack:
            cache = stack.enter_context(
                MemoryCache() if self.config.cache_dir is None else DiskCache(self.config.cache_dir)
            )
            given = data if data is not None else self._data
            data = self._checked(given, cache)
            prior = self._prior(given, data, cache)
            if self.processes.main:
                stack.enter_context(self.folder.locked())
            run = Run(self, data, prior, cache, self._checkpoint(resume), allow_changes, optimizer_from)
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
            raise InputError(
                f"the network generates weights for {', '.join(sorted(outside))} too, and target_layers is "
                f"{', '.join(self.config.target_layers)}; build it for those"
            )
        return attach(self.unet, self.net)

    def _checked(self, data: Any, cache: Cache) -> TensorData | list[Example]:
        """The data, from what a user may pass, with nothing encoded yet."""
        if data is None:
            raise InputError("no data to train on: give a folder of images, or (image, caption) pairs")
        if isinstance(data, Sequence) and not isinstance(data, str) and data and isinstance(data[0], Mapping):
            rows = TensorData(data, denoises(self.loss))
            if self.process is not None:
                checks.check_rows(data, self.process.family)
            return rows
        if self.family is None or not hasattr(self.model, "vae"):
            raise InputError("images need a pipeline with its VAE and text encoder; for a UNet give encoded data")
        config, progress = self.config, self.config.progress and self.processes.main
        examples = as_examples(data, progress, config.mask_data, config.regularization_data)
        checks.check_examples(examples, self.family, self.net, config)
        examples = readable(examples, config.skip_broken, cache)
        checks.check_masks(examples, config)
        split(len(examples), config.validation_split)
        return examples

    def _prior(self, given: Any, data: TensorData | list[Example], cache: Cache) -> list[Example]:
        """The examples for prior preservation; neither the folder of the data nor that of masks is part of theirs."""
        if self.config.regularization_data is None:
            return []
        if isinstance(data, TensorData):
            raise InputError("regularization_data is for pictures; encoded rows may have a 'loss_weight' each instead")
        assert self.family is not None  # there are pictures
        folder = given if isinstance(given, (str, Path)) else None
        progress = self.config.progress and self.processes.main
        examples = as_examples(self.config.regularization_data, progress, without=folder)
        checks.check_apart(data, examples)
        checks.check_examples([*data, *examples], self.family, self.net, self.config)
        return readable(examples, self.config.skip_broken, cache)

    def _checkpoint(self, resume: bool | str | Path) -> Checkpoint | None:
        """Where the run is to continue; ``None`` for a new one."""
        own = resume is True or (resume and Path(resume).resolve().parent == self.folder.checkpoints.resolve())
        if not own:
            self.folder.check_unused(self.net)
        if not resume:
            return None
        if resume is True:
            self.folder.check_resumable()
            return latest_checkpoint(self.folder.checkpoints, self.net)
        if not Path(resume).is_dir():
            raise InputError(f"there is no checkpoint to resume in {resume}; give the folder of one, or resume=True")
        return read_checkpoint(Path(resume), self.net)
